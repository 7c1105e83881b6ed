"""Predictions written to files as they come, by a run that can be killed and go on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.models.checked import digest
from msun_fastai.models.saving import CONFIG_FILE, find_model_folder
from msun_fastai.predict import Prediction, Predictor
from msun_fastai.progress import Progress
from msun_fastai.rowfiles import array_file, table_file


def checksum(run: Path | str) -> str:
    """What tells a run's model from others: its configuration, which has the checksum of its
    weights. Raises `UserError`."""
    return digest(find_model_folder(run) / CONFIG_FILE)


class PredictionFiles:
    """Files with a row for every image: predictions in `out`, embeddings in `embeddings`.

    Either may be None; where both are, nothing is written. about: what the rows depend on, as
    `Progress` has it; resume: go on where the files are. `counts` has how many images each scale
    took, and None those that could not be read, of a run before too. Raises `UserError`.
    """

    def __init__(
        self,
        predictor: Predictor,
        out: Path | str | None,
        embeddings: Path | str | None,
        about: Mapping[str, Any],
        resume: bool = False,
    ):
        self.predictor = predictor
        self.counts: Counter[int | None] = Counter()
        self._table = None if out is None else table_file(out)
        self._array = None
        if embeddings is not None:
            self._array = array_file(embeddings, predictor.inference.width)
        files = [file for file in (self._table, self._array) if file is not None]
        named = {"--out": out, "--embeddings": embeddings}
        kinds = {key: None if file is None else Path(file).name for key, file in named.items()}
        self._progress = Progress(files, {**about, **kinds}, resume) if files else None
        if self._progress is not None and self._progress.state:
            self._go_on(self._progress.state)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.predictor.load_state_dict(state)
        counts = state["counts"].items()
        self.counts.update({int(scale) if scale else None: n for scale, n in counts})

    def chunks(self, sources: Iterable[Any], top: int = 5) -> Iterator[list[Prediction]]:
        """`Predictor.chunks` of the images that are not done, each chunk once it is on the disk."""
        if self._progress is not None:
            sources = self._progress.remaining(sources)
            self._progress.open()
        for chunk in self.predictor.chunks(sources, top):
            self.counts.update(p.scale for p in chunk)
            if self._progress is not None:
                self._write(self._progress, chunk)
            yield chunk
        if self._progress is not None:
            self._progress.finish()

    def _write(self, progress: Progress, chunk: list[Prediction]) -> None:
        rows: list[list[dict[str, Any]]] = []
        if self._table is not None:
            rows.append([p.as_row() for p in chunk])
        if self._array is not None:
            none = np.full(self.predictor.inference.width, np.nan, np.float32)
            vectors = (none if p.embedding is None else p.embedding for p in chunk)
            rows.append([{"path": p.path, "embedding": v} for p, v in zip(chunk, vectors)])
        counts = {"" if scale is None else str(scale): n for scale, n in self.counts.items()}
        state = {"counts": counts, **self.predictor.state_dict()}
        progress.add([p.path for p in chunk], rows, state)
