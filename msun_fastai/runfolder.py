"""Run folders: where a run goes, whether it is over, and what else its figures depend on."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from msun_fastai import __version__
from msun_fastai.errors import UserError
from msun_fastai.recipe import Recipe, load_recipe

PACKAGES = ("torch", "torchvision", "fastai", "datasets", "pillow", "safetensors", "numpy")
RECIPE, ENVIRONMENT, FINISHED = "recipe.toml", "environment.json", "metrics.json"
# what may be otherwise when a run goes on: where it runs, not what it computes
FREE = (
    "data.root",
    "data.cache",
    "train.device",
    "train.save_minutes",
    "train.log",
    "train.report",
)


def is_unfinished(folder: Path) -> bool:
    """Whether `folder` holds a run that was begun and is not over; False where there is nothing.

    Raises `UserError` for one that is over, and for a folder of something else.
    """
    if not folder.exists():
        return False
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else {""}
    if not names:
        return False
    if RECIPE not in names:
        raise UserError(f"run folder {folder}: exists and is not empty; name another")
    if FINISHED in names:
        raise UserError(f"run folder {folder}: exists, its run is finished; name another")
    return True


def unfinished_recipe(folder: Path) -> Recipe:
    """The recipe of the unfinished run in `folder`. Raises `UserError`."""
    if not folder.is_dir():
        raise UserError(f"run folder {folder}: no such folder")
    if (folder / FINISHED).is_file():
        raise UserError(f"run {folder}: is over; there is nothing to go on with")
    if not is_unfinished(folder):
        raise UserError(f"run folder {folder}: empty, there is no run to go on with")
    return load_recipe(str(folder / RECIPE))


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Raise `UserError` where the unfinished run in `folder` is one of another recipe."""
    apart = other_value(folder, recipe)
    if apart is not None:
        # a calibration has no steps to go on with, and its verb no such option
        way = "" if recipe.verb == "calibrate" else f"go on with --resume {folder}, or "
        raise UserError(
            f"run folder {folder}: its unfinished run has {apart}; {way}name another folder"
        )


def other_value(folder: Path, recipe: Recipe) -> str | None:
    """What the run in `folder` has otherwise than `recipe`, such as `train.lr = 0.1, not 0.2`; None
    where it computes the same."""
    before, now = flat(load_recipe(str(folder / RECIPE))), flat(recipe)
    for key in sorted(before):
        if before[key] != now[key] and key not in FREE:
            return f"{key} = {before[key]!r}, not {now[key]!r}"
    return None


def check_same_processes(folder: Path, processes: int) -> None:
    """Raise `UserError` where the unfinished run in `folder` is one of another number of them."""
    before = _environment(folder).get("processes", processes)
    if before != processes:
        raise UserError(
            f"run folder {folder}: was begun with {before} processes, and goes on with as many; "
            f"there are {processes}"
        )


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key."""
    found: dict[str, Any] = {}
    for name, value in recipe.model_dump().items():
        if isinstance(value, dict):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            found[name] = value
    return found


def new_run_folder(label: str, run_dir: Path | str | None) -> Path:
    """A folder that is there afterwards: `run_dir`, or `runs/<label>-<time>`, which is new."""
    if run_dir is not None:
        folder = Path(run_dir)
    else:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        base = Path("runs") / f"{label}-{stamp}"
        names = (base.with_name(f"{base.name}-{n}" if n else base.name) for n in range(1000))
        folder = next(f for f in names if not f.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"folder {folder}: cannot be made ({error.strerror})") from error
    return folder


def environment(device: torch.device, folder: Path, processes: int = 1) -> dict[str, Any]:
    """Versions, device, commit and time: what else a figure depends on.

    Of a run that goes on the times are kept, under `resumed`; `started` is the first one.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    before = _environment(folder)
    found: dict[str, Any] = {
        "msun_fastai": __version__,
        "commit": commit(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "started": before.get("started", now),
        "arguments": sys.argv[1:],
    }
    if before:
        found["resumed"] = [*before.get("resumed", []), now]
    return found


def _environment(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def device_name(device: torch.device) -> str:
    """The device, with what its maker calls it where that is known."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def commit(folder: Path) -> str | None:
    """The commit that is checked out where `folder` is, with `+` after it where files were changed;
    None where `folder` is no part of a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is installed into one
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
