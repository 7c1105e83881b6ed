"""A module built again with some of its parts replaced, and all the others shared."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

Replace = Callable[[nn.Module], nn.Module | None]


def rebuilt(module: nn.Module, instead: Replace) -> nn.Module:
    """`module` with what `instead` gives in the place of each part for which it is not None.

    What has nothing replaced inside stays the same object; what has is a new shell that shares
    its own parameters and buffers. `module` itself is left as it was.
    """
    memo: dict[int, object] = {}
    _decide(module, instead, memo)
    return copy.deepcopy(module, memo)


def _decide(module: nn.Module, instead: Replace, memo: dict[int, object]) -> bool:
    """Note what `deepcopy` takes instead of copying it; whether anything here is replaced."""
    if id(module) in memo:
        return memo[id(module)] is not module
    new = instead(module)
    if new is not None:
        memo[id(module)] = new
        return True
    changed = [_decide(child, instead, memo) for child in module.children()]
    if not any(changed):
        memo[id(module)] = module
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    memo.update({id(value): value for value in own})
    return True
