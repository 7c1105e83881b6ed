"""Prediction on images of any size from a saved model, without a Learner."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fitted
from msun_fastai.devices import pick_device
from msun_fastai.errors import ImageError
from msun_fastai.models.saving import Preprocessing, SavedModel, load_model_folder

CHUNK = 8  # batches decoded ahead, so that a chunk has enough images of each scale


@dataclass
class Prediction:
    """The answer for one image: sizes in pixels, `scale` the subnet used, `top` the best classes.

    An image that could not be read has an `error` and nothing else.
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

    def as_row(self) -> dict[str, Any]:
        """The fields by name, `top` as a list of label and probability."""
        row = dict(self.__dict__)
        row["top"] = [{"label": label, "probability": p} for label, p in self.top]
        return row


def normalize(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 images (n, 3, h, w) as the network takes them: (x / 255 - mean) / std."""
    mean, std = (
        torch.tensor(v, device=batch.device)[:, None, None]
        for v in (preprocessing.mean, preprocessing.std)
    )
    return (batch.float() / 255 - mean) / std


class Predictor:
    """A saved model that answers for images of any size, each through its own subnet.

    >>> predictor = Predictor.from_run("runs/cars")          # doctest: +SKIP
    >>> predictor.predict_one("photo.jpg").label             # doctest: +SKIP
    """

    def __init__(self, saved: SavedModel, bs: int = 64, workers: int | None = None):
        self.saved, self.bs = saved, bs
        self.workers = workers or min(8, os.cpu_count() or 1)

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
        remaining = iter(sources)
        with ThreadPoolExecutor(self.workers) as pool:
            while chunk := list(islice(remaining, self.bs * CHUNK)):
                decoded = list(pool.map(self._decode, chunk))
                for scale in self.saved.model.entry_scales:
                    group = [d for d in decoded if d[0].scale == scale]
                    for at in range(0, len(group), self.bs):
                        self._answer(group[at : at + self.bs], top)
                yield from (prediction for prediction, _ in decoded)

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

    @torch.no_grad()
    def _answer(self, group: list[tuple[Prediction, Any]], top: int) -> None:
        device = next(self.saved.model.parameters()).device
        batch = torch.stack([pixels for _, pixels in group]).to(device)
        logits = self.saved.model(normalize(batch, self.saved.preprocessing))
        best = logits.float().softmax(1).topk(min(top, logits.shape[1]))
        for (prediction, _), values, codes in zip(
            group, best.values.tolist(), best.indices.tolist()
        ):
            prediction.top = [(self.saved.classes[c], v) for c, v in zip(codes, values)]
            prediction.label, prediction.probability = prediction.top[0]
