"""The intermediate layers F_1 to F_k of a network, by name, and what they give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache

from torch import Tensor, nn

from msun_fastai.models.backbones import expand_range
from msun_fastai.models.families import find_family
from msun_fastai.models.meta import run_on_meta
from msun_fastai.models.net import MultiScaleNet


def layer_names(net: MultiScaleNet) -> list[str]:
    """`stem`, `stage 1`, `stage 2`, ...: the blocks of the network's family (Section III-C)."""
    return ["stem", *(f"stage {k}" for k in range(1, len(_ends(net.config.arch))))]


def layer_modules(
    net: MultiScaleNet, i: int, network: nn.Module | None = None
) -> dict[str, nn.Module]:
    """The last module of each block for the scale with index `i`, from image to last feature map.

    The first `net.config.blocks` + 1 are the subnet's, the others the deep part's; the output of
    the subnet's last one is taken on its own grid, before the alignment resizes it. network: one
    that was made of that scale's, as `sized_networks` does, instead.
    """
    network = net.at_scale(i) if network is None else network
    subnet, deep = network.get_submodule("subnet"), network.get_submodule("deep")
    return dict(
        zip(layer_names(net), end_modules(net.config.arch, net.config.blocks, subnet, deep))
    )


def end_modules(arch: str, blocks: int, subnet: nn.Module, deep: nn.Module) -> list[nn.Module]:
    """The last module of each block of `arch`, cut behind its stem and `blocks` blocks."""
    return [
        (subnet if k <= blocks else deep).get_submodule(path) for k, path in enumerate(_ends(arch))
    ]


def layer_sizes(network: nn.Module, modules: Mapping[str, nn.Module], side: int) -> dict[str, int]:
    """How many numbers each of `modules` gives for one image of `side` that `network` takes."""
    with recording(modules) as seen:
        run_on_meta(network, side)
    return {name: seen[name].numel() for name in modules}


@contextmanager
def recording(
    modules: Mapping[str, nn.Module], inputs: bool = False
) -> Iterator[dict[str, Tensor]]:
    """A dictionary that holds, by name, what each module gave when it ran last.

    inputs: what it was given instead. The hooks are gone when the block ends, well or not.
    """
    seen: dict[str, Tensor] = {}
    with ExitStack() as hooks:
        for name, module in modules.items():

            def keep(_: nn.Module, given: tuple[Tensor, ...], made: Tensor, name=name) -> None:
                # a copy, for the next module may write into it (ReLU in place)
                seen[name] = (given[0] if inputs else made).detach().clone()

            hooks.enter_context(_removed(module.register_forward_hook(keep)))
        yield seen


@contextmanager
def _removed(hook) -> Iterator[None]:
    try:
        yield
    finally:
        hook.remove()


@cache
def _ends(arch: str) -> list[str]:
    """The path of each block's last module, in the part of the cut network that holds it."""
    family = find_family(arch)
    blank = family.build_blank(arch, 2)
    blocks = family.blocks(blank) if callable(family.blocks) else family.blocks
    return [expand_range(blank, block.split()[-1])[-1].removeprefix("@") for block in blocks]
