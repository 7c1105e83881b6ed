"""All images of a source looked at before they are used: bad ones, and the sizes of the others."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from msun_fastai.data.bad import MAX_BAD, ON_BAD_IMAGE, BadImage, refuse_too_many
from msun_fastai.data.headers import Header, sample_headers
from msun_fastai.data.images import load_pixels
from msun_fastai.data.samples import Sample, Source
from msun_fastai.errors import ImageError, UserError
from msun_fastai.scales import check_choice

PARTS = ("train", "valid", "test")
CHUNK = 1_000  # images that are handed to the threads at a time


@dataclass(frozen=True)
class Scan:
    """`source` without the images that cannot be read, the others with their sizes; and `bad`."""

    source: Any  # a Source, or a stream's, which is not looked at before
    bad: list[BadImage]

    def count(self, part: str) -> int:
        """How many images of `part` cannot be read."""
        return sum(b.part == part for b in self.bad)


def find_bad(source: Source, decode: bool = False, workers: int | None = None) -> Scan:
    """Read the header of every image of `source`; `decode` them too, to find what headers hide."""
    bad: list[BadImage] = []
    kept: dict[str, list[Sample]] = {}
    for part in PARTS:
        samples = getattr(source, part)
        headers = sample_headers(samples, workers)
        if decode:
            headers = _decoded(samples, headers)
        bad += [BadImage(part, h) for h in headers if isinstance(h, str)]
        kept[part] = [
            replace(s, size=h) for s, h in zip(samples, headers) if not isinstance(h, str)
        ]
    return Scan(replace(source, **kept), bad)  # type: ignore[arg-type]


def scan(source: Source, on_bad_image: str = "skip", max_bad: float = MAX_BAD) -> Scan:
    """`find_bad` before training, in which `source` must not turn out to be too bad.

    on_bad_image: `skip` leaves out what cannot be read; `stop` makes it an error, as more than the
    share `max_bad` of the training images is anyway, or all of a part. Raises `UserError`.
    """
    check_choice("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    found = find_bad(source)
    if found.bad and on_bad_image == "stop":
        more = f" (and {len(found.bad) - 1} more cannot be read)" if len(found.bad) > 1 else ""
        raise UserError(f"{found.bad[0].reason}{more}")
    for part in PARTS:
        reasons = [b.reason for b in found.bad if b.part == part]
        if reasons and not getattr(found.source, part):
            raise UserError(f"{source.name}: no image in {part} can be read; {reasons[0]}")
        if part == "train":
            refuse_too_many(reasons, len(reasons), len(source.train), max_bad)
    _check_classes(source, found)
    return found


def _check_classes(source: Source, found: Scan) -> None:
    """Raise `UserError` where a class has lost all its training images."""
    if not found.bad:
        return
    lost = {s.label for s in source.train} - {s.label for s in found.source.train}
    if lost:
        raise UserError(
            f"{source.name}: no training image of class {min(lost)!r} can be read; "
            f"{next(b.reason for b in found.bad if b.part == 'train')}"
        )


def _decoded(samples: Sequence[Sample], headers: Sequence[Header]) -> list[Header]:
    def look(sample: Sample, header: Header) -> Header:
        if isinstance(header, str):
            return header
        try:
            load_pixels(sample.image)
        except ImageError as error:
            return str(error)
        return header

    found: list[Header] = []
    with ThreadPoolExecutor() as pool:  # the decoders leave Python's lock
        for at in range(0, len(samples), CHUNK):  # what is submitted takes memory
            found += pool.map(look, samples[at : at + CHUNK], headers[at : at + CHUNK])
    return found
