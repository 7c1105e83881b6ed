"""Run folders: where a run goes, and what else than the recipe its figures depend on."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from msun_fastai import __version__
from msun_fastai.errors import UserError

PACKAGES = ("torch", "torchvision", "fastai", "datasets", "pillow", "safetensors", "numpy")


def check_empty(folder: Path) -> None:
    """Raise `UserError` where a run would be written over something."""
    started = {"recipe.toml", "environment.json"}  # all there is of a run that ended no epoch
    if not folder.is_dir() or {p.name for p in folder.iterdir()} - started:
        raise UserError(f"run folder {folder}: exists and is not empty; name another")


def new_run_folder(label: str, run_dir: Path | str | None) -> Path:
    """A folder that is empty or new: `run_dir`, or `runs/<label>-<time>`."""
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
        raise UserError(f"run folder {folder}: cannot be made ({error.strerror})") from error
    return folder


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and time: what else a figure depends on."""
    return {
        "msun_fastai": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "device": str(device),
        "threads": torch.get_num_threads(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
    }
