"""A model folder: safetensors and JSON with all that prediction needs; loading runs no code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from msun_fastai import __version__
from msun_fastai.data.resize import RESIZE_RULES
from msun_fastai.errors import UserError
from msun_fastai.files import replacing, write_json
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.weights import IMAGENET_STATS
from msun_fastai.scales import check_choice

FORMAT = 2
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

    The configuration comes last, so that a folder that has one is whole.
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
        },
    )
    return path


def set_routing(run: Path | str, rule: str, found: dict[str, Any] | None = None) -> Path:
    """Give the saved model in `run` another routing rule; returns its folder. found: how the rule
    was, to be kept beside it. Raises `UserError` for a rule that does not fit its scales."""
    file = find_model_folder(run) / CONFIG_FILE
    config, _, _ = _read_config(file)
    data = json.loads(file.read_text(encoding="utf-8"))
    data["model"] = replace(config, routing=rule).as_dict()
    how = file.parent / ROUTING_FILE
    how.unlink(missing_ok=True)  # it is of the rule before
    write_json(file, data)
    if found is not None:
        write_json(how, found)
    return file.parent


def find_model_folder(run: Path | str) -> Path:
    """The model folder of a run folder, or `run` itself where it is one."""
    path = Path(run)
    for folder in (path / "model", path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    what = "no model in it" if path.is_dir() else "no such folder"
    raise UserError(f"model {path}: {what}; expected {path / 'model' / CONFIG_FILE}")


def load_model_folder(run: Path | str, device: str | torch.device = "cpu") -> SavedModel:
    """The model of a run folder or model folder, in evaluation mode. Raises `UserError`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = find_model_folder(run)
    config, classes, preprocessing = _read_config(folder / CONFIG_FILE)
    model = MultiScaleNet(config, find_family(config.arch).build(config.arch, config.n_classes))
    file = folder / WEIGHTS_FILE
    try:
        load_shared(model, load_file(file))
    except FileNotFoundError:
        raise UserError(f"model {file}: no such file") from None
    except (SafetensorError, RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(
            f"model {file}: does not hold the weights of {config.arch} ({first})"
        ) from error
    return SavedModel(model.to(device).eval(), classes, preprocessing)


def load_shared(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load `state`, in which what scales share may come once, under any of its names. Raises
    `RuntimeError` where it is not the model's."""
    named = model.state_dict(keep_vars=True)
    values = {id(named[name]): value for name, value in state.items() if name in named}
    whole = {name: values[id(own)] for name, own in named.items() if id(own) in values}
    model.load_state_dict({**state, **whole})


def _read_config(file: Path) -> tuple[NetConfig, list[str], Preprocessing]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise UserError(f"{file}: format {data['format']!r}; this version reads {FORMAT}")
        config = NetConfig(**_known(NetConfig, data["model"], file))
        preprocessing = Preprocessing(**_known(Preprocessing, data["preprocessing"], file))
        classes = list(data["classes"])
        if len(preprocessing.mean) != 3 or len(preprocessing.std) != 3:
            raise ValueError("mean and std have one value per channel")
        torch.tensor([preprocessing.mean, preprocessing.std])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file}: not a model's configuration ({type(error).__name__}: {error})"
        ) from error
    if len(classes) != config.n_classes or not all(isinstance(c, str) for c in classes):
        raise UserError(f"{file}: {len(classes)} class names for {config.n_classes} classes")
    check_choice("resize", preprocessing.resize, RESIZE_RULES)
    return config, classes, preprocessing


def _known(kind: type, values: dict[str, Any], file: Path) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise UserError(f"{file}: unknown key {unknown[0]!r}; a newer version wrote it")
    return values
