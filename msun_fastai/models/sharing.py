"""What is private to a scale and what is shared: copies of a module that share parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai.models.metalearners import MetaConv2d, has_learners
from msun_fastai.models.rebuild import rebuilt

NORMS = ("shared", "per_scale")


def has_batch_norm(module: nn.Module) -> bool:
    """Whether anything in `module` is a batch norm."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


def of_scale(module: nn.Module, scale: int, norm: str) -> nn.Module:
    """`module` for another scale: its kernels are generated for that one, and with the norm
    `per_scale` its batch norms are its own, equal to the given ones at first. All parameters else
    are shared.

    The way of resolution-switchable networks: affine parameters and running statistics of each
    scale in a new shell around the same convolutions, so that no switch has to be set in the
    forward pass. What has nothing replaced inside is not copied at all.
    """

    def instead(part: nn.Module) -> nn.Module | None:
        if isinstance(part, MetaConv2d):
            return part.at(scale)
        private = norm == "per_scale" and isinstance(part, _BatchNorm)
        return copy.deepcopy(part) if private else None

    return rebuilt(module, instead)


def own_norms(module: nn.Module) -> nn.Module:
    """`module` with batch norms of its own, equal to the given ones; all else is shared."""
    return rebuilt(module, lambda m: copy.deepcopy(m) if isinstance(m, _BatchNorm) else None)


def private_copies(
    module: nn.Module, scales: Sequence[int], norm: str, private: bool = False
) -> nn.ModuleList:
    """`module`, which is the canonical scale's, for all `scales`: one for all of them, or as many
    as there are scales.

    private: each scale has everything to itself. norm `per_scale`: each has its own batch norm.
    """
    if private:
        return nn.ModuleList([*(copy.deepcopy(module) for _ in scales[:-1]), module])
    if has_learners(module) or (norm == "per_scale" and has_batch_norm(module)):
        return nn.ModuleList([*(of_scale(module, scale, norm) for scale in scales[:-1]), module])
    return nn.ModuleList([module])
