"""Features: what a network's classifier sees of every image, taken once and kept in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msun_fastai.data.bad import ON_BAD_IMAGE
from msun_fastai.data.multi_view import RoutedSides, multi_view_batches, refuse_none
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.files import replacing
from msun_fastai.models.config import NetConfig
from msun_fastai.models.heads import classifiers, penultimate, without_classifiers
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import SavedModel
from msun_fastai.predict import normalize
from msun_fastai.scales import check_choice

COLUMNS = {"x": torch.float32, "codes": torch.int64, "images": torch.int64, "scales": torch.int64}


@dataclass
class Features:
    """One row a view, in the order of the images and of the scales of each.

    x: float32 (n, d). codes: the class of each row. images: which sample it is of. scales: the side
    in pixels at which the network saw it; all three int64 (n,). unreadable: a reason for each image
    that has no row.
    """

    x: Tensor
    codes: Tensor
    images: Tensor
    scales: Tensor
    unreadable: list[str] = field(default_factory=list)

    def at(self, scale: int) -> Features:
        """The rows of one scale."""
        rows = self.scales == scale
        return Features(**{c: getattr(self, c)[rows] for c in COLUMNS}, unreadable=self.unreadable)

    def joined(self, other: Features) -> Features:
        """The rows of both; their images are counted on."""
        ours, theirs = vars(self), {**vars(other), "images": other.images + self.images.max() + 1}
        rows = {c: torch.cat([ours[c], theirs[c]]) for c in COLUMNS}
        return Features(**rows, unreadable=[*self.unreadable, *other.unreadable])

    @property
    def seen(self) -> int:
        """How many images have rows."""
        return len(self.images.unique())


def extract(
    saved: SavedModel,
    samples: Iterable[Sample],
    views: str = "native",
    bs: int = 64,
    workers: int = 0,
    on_bad: str = "skip",
    check: Callable[[], object] = bool,
) -> Features:
    """The features of `samples`, a list or a stream of them, without augmentation.

    Each image is decoded once and resized by the model's own rule to the scales that the policy
    `views` gives it; a network whose heads are private takes all scales. The rows do not depend on
    `bs` (the batch that is decoded at a time and goes through scale by scale) nor on `workers`.
    on_bad: `skip` reports what cannot be read, `stop` raises. check: called after every batch; it
    may raise to end it. Raises `UserError`.
    """
    check_choice("on_bad_image", on_bad, ON_BAD_IMAGE)
    model = saved.model.eval()
    device = next(model.parameters()).device
    scales, rule = model.entry_scales, saved.preprocessing.resize
    routed = RoutedSides(scales, scales_policy(model, views), model.config.routing)
    rows: list[tuple[Tensor, ...]] = []
    unreadable: list[str] = []
    for batch in multi_view_batches(samples, saved.classes, rule, routed, bs, workers):
        if batch.unreadable and on_bad == "stop":
            raise UserError(batch.unreadable[0])
        unreadable += batch.unreadable
        for group in batch.groups:
            given = normalize(group.views.to(device), saved.preprocessing)
            x = penultimate(model, given, scales.index(group.side)).float().cpu()
            sides = torch.full_like(group.codes, group.side)
            rows.append((x, group.codes, group.images, sides))
        check()
    refuse_none(len(rows), unreadable)
    x, codes, images, sides = (torch.cat(column) for column in zip(*rows))
    order = torch.from_numpy(np.lexsort((sides, images)))
    return Features(x[order], codes[order], images[order], sides[order], unreadable)


def scales_policy(model: MultiScaleNet, views: str) -> str:
    """`views`, or `all` where every scale has a classifier of its own that needs rows."""
    return "all" if len(classifiers(model)) > 1 else views


def fingerprint(saved: SavedModel, samples: Iterable[Sample], views: str) -> str:
    """What features depend on, as a SHA-256: weights but for the classifiers, configuration,
    preprocessing, classes, views, and the samples (paths by their names, pixels by their values).

    Of a stream, which is not read for it, its name and length.
    """
    about: list[Any] = [
        {**_chosen(saved.model.config), "n_classes": len(saved.classes)},
        [vars(saved.preprocessing), saved.classes, scales_policy(saved.model, views)],
    ]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in without_classifiers(saved.model).items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    if isinstance(samples, Sequence):
        digest.update(f"{len(samples)} samples".encode())
        for sample in samples:
            digest.update(f"\n{sample.label}\n".encode("utf-8", "surrogateescape"))
            digest.update(_identity(sample.image))
    else:
        about = [getattr(samples, "where", ""), getattr(samples, "n", None)]
        digest.update(f"{about}".encode())
    return digest.hexdigest()


def _chosen(config: NetConfig) -> dict[str, Any]:
    """The values that are not the default, so that a new field changes no network's."""
    own = {f.name: f.default for f in dataclasses.fields(config)}
    return {name: value for name, value in vars(config).items() if value != own[name]}


def _identity(image: Any) -> bytes:
    """What tells an image from another: its name where it has one, else its values."""
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    if isinstance(image, (str, Path)) or hasattr(image, "open_bytes"):
        return str(image).encode("utf-8", "surrogateescape")
    values = np.asarray(image)
    return f"{values.shape}{values.dtype}".encode() + values.tobytes()


def save(features: Features, file: Path | str, fingerprint: str = "") -> None:
    """Write `features` to `file` (safetensors), whole or not at all."""
    from safetensors.torch import save_file

    columns = {name: getattr(features, name).contiguous() for name in COLUMNS}
    about = {"fingerprint": fingerprint, "unreadable": json.dumps(features.unreadable)}
    with replacing(file) as temporary:
        save_file(columns, temporary, metadata=about)


def load(file: Path | str) -> tuple[Features, str]:
    """The features in `file` and their fingerprint. Raises `UserError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            columns = {name: opened.get_tensor(name) for name in COLUMNS}
            about = opened.metadata()
        features = Features(**columns, unreadable=json.loads(about["unreadable"]))
        if any(columns[name].dtype != kind for name, kind in COLUMNS.items()):
            raise ValueError("other types")
        if columns["x"].ndim != 2 or len({len(column) for column in columns.values()}) > 1:
            raise ValueError("columns of different lengths")
        return features, about["fingerprint"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"features {file}: cannot be read ({error})") from error


def cached(file: Path | str, fingerprint: str, make: Callable[[], Features]) -> Features:
    """The features in `file` if they have this `fingerprint`; else those that `make` gives, which
    are kept there."""
    try:
        features, found = load(file)
        if found == fingerprint:
            return features
    except UserError:  # not there yet, or cut short: it is made again
        pass
    features = make()
    save(features, file, fingerprint)
    return features
