"""timm's networks by their names. Only names that torchvision lacks ask for timm."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import util
from typing import Any

from torch import Tensor, nn

from msun_fastai.errors import UserError, did_you_mean

INSTALL = "timm's names need pip install 'msun-fastai[timm]'"


def installed() -> bool:
    """Whether timm can be imported."""
    return util.find_spec("timm") is not None


def plain_name(arch: str) -> str:
    """`resnet50` of `resnet50.a1_in1k`: a tag names weights, not a structure."""
    return arch.partition(".")[0]


@cache
def module_of(arch: str, modules: tuple[str, ...]) -> str | None:
    """Which of timm's `modules` defines `arch`; None for none of them, or without timm."""
    if not has(arch):
        return None
    import timm

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


def has(arch: str) -> bool:
    """Whether timm is installed and has a network of the name `arch`."""
    if not installed():
        return False
    import timm

    return timm.is_model(plain_name(arch))


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


Stats = tuple[list[float], list[float]]


def input_stats(arch: str, imagenet: Stats) -> Stats:
    """Mean and standard deviation per channel by which `arch` expects its images normalised.

    A name that timm has replaced by another says nothing of them: `imagenet` then.
    """
    import timm

    config: Any = timm.get_pretrained_cfg(arch)
    return (list(config.mean), list(config.std)) if config else imagenet


def check_tag(arch: str) -> None:
    """Raise `UserError` where `arch` has a tag, such as `.a1_in1k`, that timm has no weights of."""
    import timm

    tagged = timm.list_pretrained(f"{plain_name(arch)}.*")
    if "." in arch and arch not in tagged:
        near = did_you_mean(arch, tagged or [plain_name(arch)])
        raise UserError(f"arch: timm has no weights of the name {arch!r}; {near}")


def tagged_name(name: str) -> str:
    """`name` with the tag of its default weights, which makes it timm's where torchvision has it,
    too."""
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return f"{name}.{config.tag}" if config and config.tag else name
