"""A model folder: safetensors and JSON with all that prediction needs; loading runs no code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from msun_fastai import __version__
from msun_fastai.data.resize import RESIZE_RULES
from msun_fastai.errors import UserError
from msun_fastai.files import replacing, write_json
from msun_fastai.models.backbones import IMAGENET_STATS
from msun_fastai.models.checked import check_weights, digest, read_json
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.scales import check_choice

FORMAT = 3
KEYS = ("format", "msun_fastai", "model", "classes", "preprocessing", "sha256")
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
ROUTING_FILE = "routing.json"  # how calibrated thresholds were found


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the network: the resize rule, then (x / 255 - mean) / std."""

    resize: str = "squish"
    mean: list[float] = field(default_factory=lambda: list(IMAGENET_STATS[0]))
    std: list[float] = field(default_factory=lambda: list(IMAGENET_STATS[1]))


@dataclass
class SavedModel:
    """A network with the names of its classes and its preprocessing."""

    model: MultiScaleNet
    classes: list[str]
    preprocessing: Preprocessing


def save_model_folder(folder: Path | str, saved: SavedModel) -> Path:
    """Write `saved` to `folder` as `model.safetensors` and `config.json`; returns the folder.

    The configuration comes last, so that a folder that has one is whole; it holds the SHA-256 of
    the weights.
    """
    from safetensors.torch import save_file

    path = Path(folder)
    named = saved.model.state_dict(keep_vars=True)  # the objects: what scales share comes once
    once = {id(value): name for name, value in reversed(named.items())}
    state = {name: named[name].detach().contiguous().cpu() for name in sorted(once.values())}
    with replacing(path / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    write_json(
        path / CONFIG_FILE,
        {
            "format": FORMAT,
            "msun_fastai": __version__,
            "model": saved.model.config.as_dict(),
            "classes": saved.classes,
            "preprocessing": asdict(saved.preprocessing),
            "sha256": digest(path / WEIGHTS_FILE),
        },
    )
    return path


def set_routing(run: Path | str, rule: str, found: dict[str, Any] | None = None) -> Path:
    """Give the saved model in `run` another routing rule; returns its folder. found: how the rule
    was, to be kept beside it. Raises `UserError` for a rule that does not fit its scales."""
    file = find_model_folder(run) / CONFIG_FILE
    config, data = _read_config(file).config, read_json(file)
    refuse_rerouting(config, str(run))
    data["model"] = replace(config, routing=rule).as_dict()
    how = file.parent / ROUTING_FILE
    how.unlink(missing_ok=True)  # it is of the rule before
    write_json(file, data)
    if found is not None:
        write_json(how, found)
    return file.parent


def refuse_rerouting(config: NetConfig, name: str) -> None:
    """Raise `UserError` for a network whose routing is between sets of batch norms."""
    if config.test_sizes is not None:
        raise UserError(
            f"{name}: is calibrated for input sizes; calibrate the routing of its parent, then the "
            "sizes"
        )


def find_model_folder(run: Path | str) -> Path:
    """The model folder of a run folder, or `run` itself where it is one."""
    path = Path(run)
    for folder in (path / "model", path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    what = "no model in it" if path.is_dir() else "no such folder"
    raise UserError(f"model {path}: {what}; expected {path / 'model' / CONFIG_FILE}")


def load_model_folder(run: Path | str, device: str | torch.device = "cpu") -> SavedModel:
    """The model of a run folder or model folder, in evaluation mode.

    Its files are checked before anything is built from them, see `models.checked`; no code in them
    is run. Raises `UserError`.
    """
    from safetensors.torch import load_file

    folder = find_model_folder(run)
    file = folder / WEIGHTS_FILE
    found = _read_config(folder / CONFIG_FILE)
    config = found.config
    check_weights(file, config, found.checksum)
    model = MultiScaleNet(config, find_family(config.arch).build(config.arch, config.n_classes))
    try:
        load_shared(model, load_file(file))
    except (RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"model {file}: cannot be loaded ({first})") from error
    return SavedModel(model.to(device).eval(), found.classes, found.preprocessing)


def load_shared(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load `state`, in which what scales share may come once, under any of its names. Raises
    `RuntimeError` where it is not the model's."""
    named = model.state_dict(keep_vars=True)
    values = {id(named[name]): value for name, value in state.items() if name in named}
    whole = {name: values[id(own)] for name, own in named.items() if id(own) in values}
    model.load_state_dict({**state, **whole})


@dataclass(frozen=True)
class FolderConfig:
    """What `config.json` says; checksum: the SHA-256 of the weights, whatever type it has there."""

    config: NetConfig
    classes: list[str]
    preprocessing: Preprocessing
    checksum: object


def folder_config(run: Path | str) -> FolderConfig:
    """What a run folder or model folder says of its model; its weights are not looked at. Raises
    `UserError`."""
    return _read_config(find_model_folder(run) / CONFIG_FILE)


def _read_config(file: Path) -> FolderConfig:
    data = read_json(file)
    try:
        if data["format"] != FORMAT:
            raise UserError(f"{file}: format {data['format']!r}; this version reads {FORMAT}")
        _refuse_unknown(KEYS, data, file)
        _refuse_unknown((f.name for f in fields(NetConfig)), data["model"], file)
        _refuse_unknown((f.name for f in fields(Preprocessing)), data["preprocessing"], file)
        config = NetConfig(**data["model"])
        preprocessing = Preprocessing(**data["preprocessing"])
        classes, checksum = list(data["classes"]), data["sha256"]
        _check_numbers(preprocessing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{file}: not a model's configuration ({type(error).__name__}: {error})"
        ) from error
    if len(classes) != config.n_classes or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{file}: {len(classes)} class names for {config.n_classes} classes")
    check_choice("resize", preprocessing.resize, RESIZE_RULES)
    return FolderConfig(config, classes, preprocessing, checksum)


def _check_numbers(preprocessing: Preprocessing) -> None:
    if len(preprocessing.mean) != 3 or len(preprocessing.std) != 3:
        raise ValueError("mean and std have one value per channel")
    stats = torch.tensor([preprocessing.mean, preprocessing.std])
    if not stats.isfinite().all() or not (stats[1] > 0).all():
        raise ValueError("mean and std are finite numbers, and std is above 0")


def _refuse_unknown(known: Iterable[str], values: dict[str, Any], file: Path) -> None:
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UserError(f"{file}: unknown key {unknown[0]!r}; a newer version wrote it")
