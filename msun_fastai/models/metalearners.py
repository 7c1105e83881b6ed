"""Meta learners: convolutions whose kernels are generated from the scale (SAN, Section 3.1).

Sections, equations and tables of Li, Yao, Chen: Learning to Learn Parameterized Classification
Networks for Scalable Input Images, ECCV 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.rebuild import rebuilt

REDUCTION = 32  # pixels of an image to a position of the last features
SHARE = 0.1  # of the encoding that each such position is


def encode(side: float) -> float:
    """The scale encoding 0.1 * S / 32 of images of side S in pixels (Section 3.1)."""
    return SHARE * side / REDUCTION


class LinearLearner(nn.Module):
    """W = e W_l + b_l (Eq. 2), all of a kernel's shape (out, in / groups, kh, kw).

    W_l (`slope`) is zero at first and b_l (`base`) the given kernel, so that every scale starts
    with it. Neither is called `bias`, which fastai would leave out of the weight decay.
    """

    def __init__(self, kernel: nn.Parameter):
        super().__init__()
        self.slope = nn.Parameter(torch.zeros_like(kernel))
        self.base = kernel

    def forward(self, encoding: float) -> Tensor:
        """The kernel of the scale that has this encoding."""
        return encoding * self.slope + self.base


class HiddenLearner(nn.Module):
    """W = W_l relu(u e + c) + b_l: a layer of hidden units, 8 or 16 of them in Table 5.

    u, c (`hidden`) are drawn as every linear layer's, W_l (`slope`, (elements, units)) is zero at
    first and b_l (`base`) the given kernel.
    """

    def __init__(self, kernel: nn.Parameter, units: int):
        super().__init__()
        self.hidden = nn.Linear(1, units)
        # of two dimensions, for channels_last knows no five
        self.slope = nn.Parameter(kernel.new_zeros(kernel.numel(), units))
        self.base = kernel

    def forward(self, encoding: float) -> Tensor:
        """The kernel of the scale that has this encoding."""
        kind = self.base.device.type
        # as the linear one, exactly; the meta device knows no autocast
        with torch.autocast("cpu" if kind == "meta" else kind, enabled=False):
            units = self.hidden(self.base.new_tensor([encoding])).relu()
            return (self.slope @ units).view_as(self.base) + self.base


class MetaConv2d(nn.Conv2d):
    """A convolution, ordinary, grouped or depthwise, whose kernel `learner` generates for `scale`.

    Its bias, where it has one, is an ordinary parameter that all scales share. In training a kernel
    is generated in every pass, so that gradients reach the learner; in evaluation without gradients
    once (`constant`).
    """

    def __init__(self, like: nn.Conv2d, learner: nn.Module, scale: int):
        super().__init__(
            like.in_channels,
            like.out_channels,
            like.kernel_size,  # type: ignore[arg-type]
            like.stride,  # type: ignore[arg-type]
            like.padding,  # type: ignore[arg-type]
            like.dilation,  # type: ignore[arg-type]
            like.groups,
            bias=False,
            padding_mode=like.padding_mode,
            device="meta",
        )
        del self.weight
        self.bias = like.bias
        self.learner, self.scale = learner, scale
        self.train(like.training)
        self._made: tuple[Any, ...] | None = None

    def at(self, scale: int) -> MetaConv2d:
        """The same convolution for another scale; all parameters are shared."""
        return MetaConv2d(self, self.learner, scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, in, h, w)."""
        generating = self.training or torch.is_grad_enabled() or torch.compiler.is_compiling()
        kernel = self.learner(encode(self.scale)) if generating else self.constant()
        return self._conv_forward(x, kernel, self.bias)

    def constant(self) -> nn.Parameter:
        """The generated kernel as a parameter that needs no gradient: in evaluation the same one
        until the learner has changed. What is written through `.data` in evaluation mode is not
        seen, for torch counts no version there; `train()` and back makes a new one."""
        given = list(self.learner.parameters())
        # fastai's optimizers step past a parameter's version: in training nothing is kept
        now = [(p.data_ptr(), p.device, 0 if p.is_inference() else p._version) for p in given]
        if self.training or self._made is None or not _same(self._made, given, now):
            self._made = (given, now, self.kernel_for(self.scale))
        return self._made[-1]

    def kernel_for(self, side: float) -> nn.Parameter:
        """The kernel for images of any side, as a parameter that needs no gradient."""
        with torch.inference_mode(False), torch.no_grad():
            return nn.Parameter(self.learner(encode(side)), requires_grad=False)

    def plain(self, kernel: nn.Parameter) -> nn.Conv2d:
        """An ordinary convolution with `kernel`, and this one's bias itself."""
        conv = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
            self.groups,
            bias=False,
            padding_mode=self.padding_mode,
            device="meta",
        )
        conv.weight, conv.bias = kernel, self.bias
        return conv.train(self.training)

    def train(self, mode: bool = True) -> MetaConv2d:
        """Training or evaluation; what was made before training is dropped."""
        if mode or self.training:
            self._made = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_made": None}  # a copy or a file makes its own

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}"


def _same(made: tuple[Any, ...], given: list[nn.Parameter], now: list[Any]) -> bool:
    return now == made[1] and all(a is b for a, b in zip(given, made[0], strict=True))


def has_learners(module: nn.Module) -> bool:
    """Whether any kernel in `module` is generated."""
    return any(isinstance(m, MetaConv2d) for m in module.modules())


def with_learners(parts: Sequence[nn.Module], scale: int, units: int = 0) -> list[nn.Module]:
    """`parts` of a network, from the image on, with a meta learner for every convolution but the
    first, which stays an ordinary one (as in the authors' ResNet).

    scale: the one that they are generated for. units: hidden units of each learner, 0 for linear.
    Raises `UserError` where there is nothing to generate, or a convolution that is not torch's.
    """
    found = [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]
    if len(found) < 2:
        raise UserError("method: san: there are no convolutions behind the stem to generate")
    for conv in found:
        if type(conv).forward is not nn.Conv2d.forward:
            raise UserError(f"method: san: no kernels are generated for {type(conv).__name__}")

    def instead(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, nn.Conv2d) or module is found[0]:
            return None
        kernel = cast(nn.Parameter, module.weight)
        learner = HiddenLearner(kernel, units) if units else LinearLearner(kernel)
        return MetaConv2d(module, learner, scale)

    return [rebuilt(part, instead) for part in parts]


class GeneratedNetwork:
    """The plain network of one scale beside the one with meta learners, of which it has the
    kernels, and all else itself. Hooks stay where they are, for `network` stays the same object."""

    def __init__(self, network: nn.Sequential):
        self.pairs: list[tuple[nn.Conv2d, MetaConv2d]] = []
        self.network = rebuilt(network, self._plain)

    def _plain(self, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, MetaConv2d):
            return None
        self.pairs.append((module.plain(module.constant()), module))
        return self.pairs[-1][0]

    def up_to_date(self) -> nn.Sequential:
        """The network with the kernels that the learners give now."""
        for conv, meta in self.pairs:
            kernel = meta.constant()
            if conv.weight is not kernel:
                conv.weight = kernel
        assert isinstance(self.network, nn.Sequential)
        return self.network
