"""Networks run on the meta device: shapes and costs without computing, without copying values."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

Grid = tuple[int, int]


def run_on_meta(module: nn.Module, side: int) -> Tensor:
    """What `module` gives for one image (3, side, side), as a tensor that has a shape alone.

    Raises `RuntimeError` where the image is too small for it.
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    values = {name: value.detach().to("meta") for name, value in named}
    with torch.no_grad(), evaluating(module), _WithoutBatchNorm():
        return functional_call(module, values, torch.empty(1, 3, side, side, device="meta"))


class _WithoutBatchNorm(TorchFunctionMode):
    """Batch norms hand on what they get: they change no shape, and on the meta device, where torch
    works them out in Python, they would take two thirds of the time."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func is nn.functional.batch_norm else func(*args, **(kwargs or {}))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in evaluation mode for a while, each part put back into the mode it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def grid_of(module: nn.Module, side: int) -> Grid:
    """Height and width of the features of `module` for images of `side`."""
    height, width = run_on_meta(module, side).shape[-2:]
    return height, width


def runs_at(module: nn.Module, side: int) -> bool:
    """Whether images of `side` are large enough for `module`."""
    try:
        run_on_meta(module, side)
    except RuntimeError:
        return False
    return True


def smallest_side(module: nn.Module, largest: int) -> int:
    """The smallest side of images that `module` can take; it has to take `largest`."""
    below, side = 0, largest  # it cannot at `below`, it can at `side`
    while side - below > 1:
        middle = (below + side) // 2
        below, side = (below, middle) if runs_at(module, middle) else (middle, side)
    return side


Some = TypeVar("Some", bound=nn.Module)


def on_meta(module: Some) -> Some:
    """A copy of `module` on the meta device, made without copying its values."""
    memo: dict[int, object] = {id(b): b.detach().to("meta") for b in module.buffers()}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    return copy.deepcopy(module, memo)
