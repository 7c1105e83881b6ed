"""Starting weights: torchvision's ImageNet weights, a file of the user's, or a trained network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights, list_models

from msun_fastai.errors import UserError
from msun_fastai.models import timm_names
from msun_fastai.models.backbones import IMAGENET_STATS, Family
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.plain import is_folder, plain_state
from msun_fastai.models.saving import folder_config

ADVICE = "give --weights FILE (a state dict) or --no-pretrained"


def build_net(
    config: NetConfig,
    pretrained: bool = False,
    weights: Path | str | WeightsEnum | None = None,
    classes: Sequence[str] | None = None,
) -> MultiScaleNet:
    """The network of `config`, from random weights, published ones (`pretrained`), or `weights`.

    Published are torchvision's default weights, or timm's for a name of timm's; `weights` is a
    state-dict file, a member of torchvision's enum, or the run folder or model folder of a network
    of one scale with the same backbone. classes: their names, where they are known.

    Every subnet starts from the given shallow layers. The classifier is new unless the given one
    has as many classes, and a folder's the same `classes`. Raises `UserError` where weights cannot
    be had or do not fit.
    """
    family = find_family(config.arch)
    network = family.build(config.arch, config.n_classes)
    if isinstance(weights, WeightsEnum):
        load_backbone(network, torchvision_state(weights), family, str(weights))
    elif is_folder(weights):
        state = plain_state(str(weights), config.arch, classes)
        load_backbone(network, state, family, f"weights {weights}")
    elif weights is not None:
        load_backbone(network, read_state(weights), family, str(weights))
    elif pretrained:
        load_backbone(network, imagenet_state(config.arch), family, "ImageNet weights")
    return MultiScaleNet(config, network)


def imagenet_state(arch: str) -> dict[str, Tensor]:
    """The published ImageNet weights for `arch`: torchvision's default ones, or timm's."""
    if find_family(arch).timm_module:
        return timm_names.pretrained_state(arch, ADVICE)
    if arch not in list_models():
        raise UserError(f"arch {arch}: there are no pretrained weights for it; {ADVICE}")
    return torchvision_state(get_model_weights(arch).DEFAULT)


def input_stats(arch: str, weights: object = None) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel (of values from 0 to 1) that `arch` expects, or the
    network of the run or model folder `weights` if they are one."""
    if is_folder(weights):
        own = folder_config(str(weights)).preprocessing
        return own.mean, own.std
    if find_family(arch).timm_module:
        return timm_names.input_stats(arch, IMAGENET_STATS)
    return IMAGENET_STATS


def torchvision_state(choice: WeightsEnum) -> dict[str, Tensor]:
    """The weights `choice`, from torchvision's cache or downloaded into it."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name
    try:
        return choice.get_state_dict(progress=False, check_hash=True)
    except (URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"weights {choice}: not cached as {file} and not to be downloaded ({reason}); {ADVICE}"
        ) from error
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        what = f"{file} is damaged, remove it" if file.exists() else f"{file} cannot be written"
        raise UserError(f"weights {choice}: {what} ({error})") from error


def read_state(path: Path | str) -> dict[str, Tensor]:
    """A state dict from a `.safetensors` file or a torch file; no code in it is run."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"weights {file}: no such file")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged or hostile files fail in the readers in many ways
        raise UserError(
            f"weights {file}: not a state dict that can be read ({type(error).__name__})"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]  # torchvision's reference scripts and fastai's save_model nest it
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"weights {file}: holds no state dict of tensors")
    prefixes = ("_orig_mod.", "module.")  # of a compiled or distributed model's checkpoint
    for prefix in prefixes:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_backbone(network: nn.Module, state: dict[str, Tensor], family: Family, where: str) -> None:
    """Load `state` into `network`; its classifier only where the number of classes agrees."""
    own = network.state_dict()
    head = f"{family.classifier}."
    named = {modern_name(n): v for n, v in state.items() if not n.startswith(family.unused)}
    state = {
        name: value
        for name, value in named.items()
        if not (name.startswith(head) and name in own and own[name].shape != value.shape)
    }
    missing = [n for n in own if n not in state and not n.startswith(head)]
    missing = [n for n in missing if not n.endswith("num_batches_tracked")]
    strange = [n for n in state if n not in own]
    wrong = [n for n in state if n in own and own[n].shape != state[n].shape]
    for names, what in ((missing, "lacks"), (strange, "has the unknown"), (wrong, "misshapes")):
        if names:
            raise UserError(
                f"{where}: {what} {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}; "
                "they are not of this backbone"
            )
    network.load_state_dict(state, strict=False)


def modern_name(name: str) -> str:
    """A parameter's name as torchvision has it now; its DenseNet files say `norm.1` for `norm1`."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
