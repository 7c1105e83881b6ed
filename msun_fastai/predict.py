"""Prediction on images of any size from a saved model, without a Learner."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fitted
from msun_fastai.devices import pick_device
from msun_fastai.errors import ImageError
from msun_fastai.inference import Inference, Options, normalize
from msun_fastai.models.saving import SavedModel, load_model_folder

__all__ = ["Prediction", "Predictor", "normalize"]

CHUNK = 16  # batches in a chunk, so that it has enough images of each scale
MOST = 2048  # images in a chunk whatever the batches: at 224 pixels they take 300 MB


@dataclass
class Prediction:
    """The answer for one image: sizes in pixels, `scale` the subnet used, `top` the best classes.

    embedding: what the classifier saw of it, float32 (d,), where that was asked for. An image that
    could not be read has an `error` and nothing else.
    """

    path: str
    width: int | None = None
    height: int | None = None
    native_size: int | None = None
    scale: int | None = None
    label: str | None = None
    probability: float | None = None
    top: list[tuple[str, float]] = field(default_factory=list)
    error: str | None = None
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)

    def as_row(self) -> dict[str, Any]:
        """The fields by name but for the embedding, `top` as a list of label and probability."""
        row = {name: value for name, value in vars(self).items() if name != "embedding"}
        row["top"] = [{"label": label, "probability": p} for label, p in self.top]
        return row


class Predictor:
    """A saved model that answers for images of any size, each through its own subnet.

    bs: images in a batch, or `auto`, see `Inference`; `options` say how the network is run.
    workers: threads that decode.

    >>> predictor = Predictor.from_run("runs/cars")          # doctest: +SKIP
    >>> predictor.predict_one("photo.jpg").label             # doctest: +SKIP
    """

    def __init__(
        self,
        saved: SavedModel,
        bs: int | str | None = None,
        workers: int | None = None,
        options: Options | None = None,
        tell: Callable[[str], object] = bool,
    ):
        self.saved = saved
        self.inference = Inference(saved, bs, options, tell)
        self.workers = workers or min(8, os.cpu_count() or 1)
        self._chunk = 0  # images; found out when they are first asked for

    @classmethod
    def from_run(cls, run: Path | str, device: str | None = None, **options: Any) -> Predictor:
        """The model of a run folder or model folder, on `device` or the best there is."""
        return cls(load_model_folder(run, pick_device(device)), **options)

    def predict_one(self, source: Any, top: int = 5) -> Prediction:
        """One image: a path, bytes, Pillow image, array or tensor. Raises `ImageError`."""
        (prediction,) = self.predict([source], top)
        if prediction.error is not None:
            raise ImageError(prediction.error)
        return prediction

    def predict(self, sources: Iterable[Any], top: int = 5) -> Iterator[Prediction]:
        """One `Prediction` per source, in the order given; unreadable ones carry their error.

        Reads ahead a bounded number of images and groups them by scale, so that every batch goes
        through one subnet.
        """
        return chain.from_iterable(self.chunks(sources, top))

    def chunks(self, sources: Iterable[Any], top: int = 5) -> Iterator[list[Prediction]]:
        """`predict`, in the chunks in which images are read and grouped.

        The next chunk is read and decoded, in threads, while the network works on one; `sources` is
        asked in a thread of its own. A chunk's answers depend on nothing before it: from the start
        of one, the same images get the same answers to the last bit.
        """
        remaining = iter(sources)
        reader = ThreadPoolExecutor(1)
        pool = ThreadPoolExecutor(self.workers)

        def read() -> list[tuple[Prediction, Tensor | None]]:
            return list(pool.map(self._decode, islice(remaining, self.chunk)))

        try:
            following = reader.submit(read)
            while decoded := following.result():
                following = reader.submit(read)
                answered = self._answered(decoded, top)
                decoded.clear()  # of the pixels, for the time that whoever asks takes
                yield answered
        finally:  # whoever stops asking does not wait for what was read ahead
            reader.shutdown(wait=False, cancel_futures=True)
            pool.shutdown(wait=False, cancel_futures=True)

    @property
    def chunk(self) -> int:
        """How many images are read and grouped at a time."""
        if not self._chunk:
            largest = max(self.inference.size(s) for s in self.saved.model.entry_scales)
            self._chunk = max(largest, min(largest * CHUNK, MOST))
        return self._chunk

    def state_dict(self) -> dict[str, Any]:
        """What another process has to know to make the same chunks and batches."""
        return {"chunk": self.chunk, **self.inference.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._chunk = int(state["chunk"])
        self.inference.load_state_dict(state)

    def _decode(self, source: Any) -> tuple[Prediction, Tensor | None]:
        prediction = Prediction(str(source) if isinstance(source, (str, Path)) else "")
        try:
            with open_image(source) as image:
                scale = self.saved.model.route(image.native_size)
                pixels = fitted(image, scale, self.saved.preprocessing.resize)
        except ImageError as error:
            prediction.error = str(error)
            return prediction, None
        prediction.width, prediction.height = image.size
        prediction.native_size, prediction.scale = image.native_size, scale
        return prediction, pixels

    def _answered(
        self, decoded: list[tuple[Prediction, Tensor | None]], top: int
    ) -> list[Prediction]:
        """The predictions of a chunk with the network's answers in them."""
        for scale in self.saved.model.entry_scales:
            group = [(p, x) for p, x in decoded if x is not None and p.scale == scale]
            if group:
                pixels = torch.stack([x for _, x in group])
                self._answer([p for p, _ in group], pixels, top)
        return [prediction for prediction, _ in decoded]

    def _answer(self, predictions: list[Prediction], pixels: Tensor, top: int) -> None:
        probabilities, embeddings = self.inference(pixels)
        best = probabilities.topk(min(top, probabilities.shape[1]))
        values, codes = best.values.tolist(), best.indices.tolist()
        for i, prediction in enumerate(predictions):
            prediction.top = [(self.saved.classes[c], v) for c, v in zip(codes[i], values[i])]
            prediction.label, prediction.probability = prediction.top[0]
            if embeddings is not None:
                prediction.embedding = embeddings[i].numpy()
