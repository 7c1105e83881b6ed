"""timm's networks by their names. Only names that torchvision lacks ask for timm."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import util
from typing import Any

from torch import Tensor, nn

from msun_fastai.errors import UserError

INSTALL = "timm's names need it installed: pip install 'msun-fastai[timm]'"


def installed() -> bool:
    """Whether timm can be imported."""
    return util.find_spec("timm") is not None


def plain_name(arch: str) -> str:
    """`resnet50` of `resnet50.a1_in1k`: a tag names weights, not a structure."""
    return arch.partition(".")[0]


@cache
def module_of(arch: str, modules: tuple[str, ...]) -> str | None:
    """Which of timm's `modules` defines `arch`; None for none of them, or without timm."""
    if not installed():
        return None
    import timm

    if not timm.is_model(plain_name(arch)):
        return None
    return next(
        (m for m in modules if timm.models.is_model_in_modules(plain_name(arch), [m])), None
    )


def names(modules: Iterable[str]) -> list[str]:
    """Every name that timm has in `modules`; none without timm."""
    if not installed():
        return []
    import timm

    inside = timm.models.is_model_in_modules
    return [name for name in timm.list_models() if inside(name, list(modules))]


def what_is_wrong(arch: str) -> str:
    """Why `arch` has no family, as the beginning of an error."""
    if not installed():
        return f"unknown backbone ({INSTALL})"
    import timm

    if timm.is_model(plain_name(arch)):
        return "timm has it, but its structure is not one that is cut here:"
    return "unknown backbone"


def build(arch: str, n_classes: int) -> nn.Module:
    """timm's network `arch` with random weights."""
    import timm

    return timm.create_model(arch, pretrained=False, num_classes=n_classes)


def pretrained_state(arch: str, advice: str) -> dict[str, Tensor]:
    """timm's published weights for `arch`, from the cache or downloaded. Raises `UserError`."""
    import timm

    try:
        return timm.create_model(arch, pretrained=True).state_dict()
    except Exception as error:  # of the hub, of the network or of timm, in many classes
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"weights of {arch}: timm cannot give them ({first}); {advice}") from error


def input_stats(arch: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel by which `arch` expects its images normalised."""
    import timm

    config: Any = timm.get_pretrained_cfg(arch)
    return list(config.mean), list(config.std)
