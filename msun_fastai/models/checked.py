"""A model folder's files before they are used: bounded, whole, and of the shapes that its network
has. Nothing is built and nothing large is read before that is known."""

from __future__ import annotations

import errno
import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import torch

from msun_fastai.errors import UserError
from msun_fastai.models.config import NetConfig
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet

MOST_JSON = 32 * 2**20  # bytes: the names of a million classes
MOST_HEADER = 16 * 2**20  # bytes: a tensor takes about a hundred of them
SMALLEST_FLOAT = 2  # bytes
LENGTH = 8  # bytes of a safetensors file that say how long its header is


def read_json(file: Path) -> Any:
    """What the JSON in `file` says. Raises `UserError` for no file, one too large, and no JSON."""
    try:
        size = _size(file)
        if size > MOST_JSON:
            raise UserError(f"{file}: {size:,} bytes; a configuration has {MOST_JSON:,} at most")
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{file}: not JSON that can be read ({reason})") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


def digest(file: Path) -> str:
    """The SHA-256 of `file` in hexadecimal."""
    found = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**20):
            found.update(part)
    return found.hexdigest()


def check_weights(file: Path, config: NetConfig, expected: object) -> None:
    """Raise `UserError` unless the safetensors `file` has the SHA-256 `expected`, and exactly the
    tensors of the network of `config`, each of its shape."""
    from safetensors import SafetensorError

    try:
        shapes = tensor_shapes(file)
        if digest(file) != expected:
            raise UserError(
                f"model {file}: is not what it was saved as (another SHA-256 than its "
                "configuration has); copy the folder again"
            )
        fault = _fault(shapes, config, file.stat().st_size)
    except FileNotFoundError:
        raise UserError(f"model {file}: no such file") from None
    except (SafetensorError, OSError, ValueError) as error:
        fault = str(error).strip().splitlines()[-1].strip()
    if fault is not None:
        raise UserError(f"model {file}: does not hold the weights of {config.arch} ({fault})")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, by name, from its header alone.

    Raises `ValueError` for a header that is longer than one can be, `SafetensorError` for one that
    does not describe the file byte by byte, and `OSError`.
    """
    from safetensors import safe_open

    size = _size(file)
    with file.open("rb") as stream:
        start = stream.read(LENGTH)
    length = int.from_bytes(start, "little")
    if len(start) < LENGTH or length > min(size - LENGTH, MOST_HEADER):
        raise ValueError(f"no safetensors file: a header of {length:,} bytes in {size:,}")
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


def _size(file: Path) -> int:
    """The bytes in `file`; an `OSError` for what is no file, as a device that never ends."""
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    return found.st_size


def _fault(shapes: dict[str, tuple[int, ...]], config: NetConfig, size: int) -> str | None:
    """What keeps tensors of `shapes` from being the weights of `config`; None where nothing does.

    size: of their file in bytes, which no part of the network can be larger than.
    """
    for key in ("n_classes", "meta_hidden"):
        if getattr(config, key) * SMALLEST_FLOAT > size:
            return f"{key} = {getattr(config, key):,} in a file of {size:,} bytes"
    blank = find_family(config.arch).build_blank(config.arch, config.n_classes)
    with torch.device("meta"):
        own = MultiScaleNet(config, blank).state_dict(keep_vars=True)
    missing = {id(value): name for name, value in reversed(own.items())}
    for name, shape in shapes.items():
        if name not in own:
            return f"{name!r} is not a part of it"
        if tuple(own[name].shape) != shape:
            return f"{name}: shape {list(shape)}, not {list(own[name].shape)}"
        missing.pop(id(own[name]), None)
    return f"{next(iter(missing.values()))!r} is missing" if missing else None
