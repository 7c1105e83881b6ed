"""Checkpoint files: whole or refused, the last two kept, read without running code."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msun_fastai.errors import TrainingError, UserError
from msun_fastai.files import replacing

MAGIC = b"msun-checkpoint-1\n"
DIGEST = hashlib.sha256().digest_size
KEPT = 2
NAME = re.compile(r"step-(\d+)\.ckpt")


class DamagedError(UserError):
    """A checkpoint that does not hold what was written to it."""


@dataclass(frozen=True)
class CheckpointFolder:
    """The checkpoints of a run, `step-<steps>.ckpt` each, named after the steps that were trained.

    A file is a line that says what it is, the SHA-256 of what follows, and a `torch.save` of plain
    values and tensors.
    """

    path: Path

    def files(self) -> list[Path]:
        """The checkpoints, the newest first."""
        found = [f for f in self.path.glob("step-*.ckpt") if NAME.fullmatch(f.name)]
        return sorted(found, key=lambda f: int(f.stem.partition("-")[2]), reverse=True)

    def write(self, step: int, state: dict[str, Any]) -> Path:
        """Write `state` after `step` steps, and remove all but the last two.

        Raises `TrainingError` where it cannot be written; the ones before are still there then.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        file = self.path / f"step-{step:08d}.ckpt"
        try:
            with replacing(file) as temporary, temporary.open("wb") as out:
                out.write(MAGIC)
                out.write(hashlib.sha256(content).digest())
                out.write(content)
            for old in self.files()[KEPT:]:
                old.unlink()
        except OSError as error:
            whole = self.files()
            left = f"; {whole[0]} is still there" if whole else ""
            raise TrainingError(
                f"checkpoint {file}: cannot be written ({error.strerror or error}){left}"
            ) from error
        return file

    def newest(self, tidy: bool = True) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest state that is whole, None where there is none, and what is wrong with others.

        tidy: remove what a killed process left half-written, and give damaged files another name,
        so that they do not count as checkpoints. Raises `UserError` where a file cannot be read at
        all, for it may be whole.
        """
        wrong: list[str] = []
        for left in self.path.glob(".step-*") if tidy else ():
            left.unlink(missing_ok=True)
        for file in self.files():
            try:
                return read_checkpoint(file), wrong
            except DamagedError as error:
                wrong.append(str(error))
                if tidy:
                    file.replace(file.with_suffix(".damaged"))
        if wrong:
            wrong.append("no checkpoint is whole: the training starts from the beginning")
        return None, wrong


def read_checkpoint(file: Path | str) -> dict[str, Any]:
    """The state in a checkpoint file. Raises `DamagedError`, and `UserError` where it cannot be
    read."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"checkpoint {file}: cannot be read ({error.strerror})") from error
    head, rest = data[: len(MAGIC)], data[len(MAGIC) :]
    digest, content = rest[:DIGEST], memoryview(rest)[DIGEST:]
    if head != MAGIC or hashlib.sha256(content).digest() != digest:
        raise DamagedError(
            f"checkpoint {file}: damaged (its checksum is not that of what it holds)"
        )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise DamagedError(f"checkpoint {file}: damaged ({type(error).__name__})") from error
