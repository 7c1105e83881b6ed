"""The plain network in a trained one of one scale, as weights for a network of any method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from msun_fastai.errors import UserError
from msun_fastai.models.config import NetConfig
from msun_fastai.models.families import find_family
from msun_fastai.models.heads import refuse_fitted
from msun_fastai.models.saving import load_model_folder


def is_folder(weights: object) -> bool:
    """Whether `weights` name a folder, which is then a run's or a model's, and no state dict."""
    return isinstance(weights, (str, Path)) and Path(weights).is_dir()


def plain_state(
    run: Path | str, arch: str, classes: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The weights of the plain network in the run or model folder `run`, as a state dict of `arch`.

    classes: the names of those to come; where the folder's are others, or in another order, the
    classifier is left out. Without them it stays, as that of a file does. Kernels that are
    generated (`san`) are those of its scale. Raises `UserError`, see `check_plain`.
    """
    saved = load_model_folder(run)
    check_plain(saved.model.config, arch, f"weights {run}")
    # the parts of the network have their modules under the backbone's own paths
    whole = saved.model.at_scale(len(saved.model.entry_scales) - 1).state_dict()
    state = {name.partition(".")[2]: value for name, value in whole.items()}
    if classes is not None and list(classes) != saved.classes:
        head = f"{find_family(arch).classifier}."
        state = {name: value for name, value in state.items() if not name.startswith(head)}
    return state


def check_plain(config: NetConfig, arch: str, where: str) -> None:
    """Raise `UserError` unless a network of `config` has one scale and the backbone `arch`.

    where: what is wrong, as the error begins.
    """
    refuse_fitted(config, where)
    sides = config.entries
    if len(sides) > 1:
        raise UserError(
            f"{where}: its {config.method} has {len(sides)} scales, not the one of a plain "
            "network; --model (model.start) starts from all of it"
        )
    if config.arch != arch:
        raise UserError(
            f"{where}: its backbone is {config.arch}, not {arch}; give --arch {config.arch}"
        )
