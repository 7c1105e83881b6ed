"""What is private to a scale and what is shared: copies of a module that share parameters."""

from __future__ import annotations

import copy

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

NORMS = ("shared", "per_scale")


def has_batch_norm(module: nn.Module) -> bool:
    """Whether anything in `module` is a batch norm."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


def with_own_batch_norm(module: nn.Module) -> nn.Module:
    """A copy of `module` with batch norms of its own and every other parameter shared.

    The way of resolution-switchable networks: one set of affine parameters and running statistics
    for each scale, equal to the given one's at first. What holds no batch norm is not copied at
    all; what does is a new shell around the same convolutions, so no switch has to be set in
    the forward pass.
    """
    return copy.deepcopy(module, _shared_parts(module, {}))


def _shared_parts(module: nn.Module, memo: dict[int, object]) -> dict[int, object]:
    """What `deepcopy` finds here it takes instead of copying it."""
    if not has_batch_norm(module):
        memo[id(module)] = module
    elif not isinstance(module, _BatchNorm):
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        memo.update({id(value): value for value in own})
        for child in module.children():
            _shared_parts(child, memo)
    return memo


def private_copies(module: nn.Module, count: int, norm: str, private: bool) -> nn.ModuleList:
    """`module` for `count` scales: one for all of them, or as many as there are scales.

    private: each scale has everything to itself. norm `per_scale`: each has its own batch norm.
    """
    if private:
        return nn.ModuleList([*(copy.deepcopy(module) for _ in range(count - 1)), module])
    if norm == "per_scale" and has_batch_norm(module):
        return nn.ModuleList([*(with_own_batch_norm(module) for _ in range(count - 1)), module])
    return nn.ModuleList([module])
