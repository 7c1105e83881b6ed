"""What every source of data comes to: labelled samples in two parts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from msun_fastai.errors import UserError


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image: a path, bytes, an array, or anything with `open_bytes()`.

    size: width and height in pixels where its header was read already.
    """

    image: Any
    label: str
    size: tuple[int, int] | None = None


def image_of(item: Any) -> Any:
    """The image of a `Sample`, or what is given where it is none."""
    return item.image if isinstance(item, Sample) else item


@dataclass(frozen=True)
class Source:
    """A dataset in parts, with its classes in label order.

    valid: what training is watched on. test: looked at once, at the end; empty where `valid` is the
    test split itself. notes: what a user should be told of the data, a line each.
    """

    name: str
    train: list[Sample]
    valid: list[Sample]
    classes: list[str] = field(default_factory=list)
    test: list[Sample] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> list[Sample]:
        """The part that figures are reported on: the test part where there is one."""
        return self.test or self.valid

    @property
    def samples(self) -> list[Sample]:
        """The samples of all parts."""
        return [*self.train, *self.valid, *self.test]

    def of_classes(self, n: int | None) -> Source:
        """The first `n` classes alone, in all parts; the notes stay, for they are of the dataset.

        Raises `UserError` where there are fewer, or where a part is left without images.
        """
        if n is None:
            return self
        if not 2 <= n <= len(self.classes):
            raise UserError(
                f"classes: {n}: {self.name} has {len(self.classes)} classes; give 2 to so many"
            )
        kept = self.classes[:n]
        parts = (self.train, self.valid, self.test)
        train, valid, test = ([s for s in part if s.label in kept] for part in parts)
        return make_source(self.name, train, valid, kept, test, self.notes)

    def limited(self, n: int | None, seed: int = 42) -> Source:
        """At most `n` samples in each part, spread evenly over the classes; all classes stay.

        Raises `UserError` below 1.
        """
        if n is None:
            return self
        if n < 1:
            raise UserError(f"limit: {n} is not a number of images; give at least 1")
        return replace(
            self,
            train=take_evenly(self.train, n, seed),
            valid=take_evenly(self.valid, n, seed),
            test=take_evenly(self.test, n, seed),
        )

    def carved(self, fraction: float, seed: int = 42) -> Source:
        """With `fraction` of the training part held out to choose on, every class its share.

        What figures are reported on stays what it was.
        """
        train, valid = stratified_split(self.train, fraction, seed)
        notes = self.notes
        if self.test:
            note = f"the {len(self.valid):,} images of its validation part are not used"
            notes = (*notes, f"{self.name}: {note}")
        return replace(self, train=train, valid=valid, test=self.measured, notes=notes)


def make_source(
    name: str,
    train: list[Sample],
    valid: list[Sample],
    classes: Sequence[str] | None = None,
    test: Sequence[Sample] = (),
    notes: tuple[str, ...] = (),
) -> Source:
    """A checked `Source`: both parts hold images, no class is missing from the training part."""
    for part, samples in (("training", train), ("validation", valid)):
        if not samples:
            raise UserError(f"{name}: the {part} part holds no images")
    trained = {s.label for s in train}
    classes = sorted(trained) if classes is None else list(classes)
    held_out = [*valid, *test]
    unknown = sorted({s.label for s in [*train, *held_out]} - set(classes))
    if unknown:
        raise UserError(f"{name}: label {unknown[0]!r} is not among the {len(classes)} classes")
    untrained = sorted({s.label for s in held_out} - trained)
    if untrained:
        raise UserError(
            f"{name}: class {untrained[0]!r} has images to validate on but none to train on"
        )
    if len(classes) < 2:
        raise UserError(f"{name}: one class only ({classes[0]!r}); a classifier needs two")
    return Source(name, train, valid, classes, list(test), notes)


def by_class(samples: Sequence[Sample], seed: int) -> dict[str, list[Sample]]:
    """Samples grouped by label, each group shuffled by `seed`."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.label, []).append(sample)
    rng = random.Random(seed)
    for label in sorted(groups):
        rng.shuffle(groups[label])
    return groups


def take_evenly(samples: Sequence[Sample], n: int, seed: int) -> list[Sample]:
    """`n` samples (or all), one of each class in turn until there are enough."""
    if n >= len(samples):
        return list(samples)
    groups = by_class(samples, seed)
    # the order of the classes is drawn too: with fewer images than classes, not the first ones
    order = random.Random(seed).sample(sorted(groups), len(groups))
    turns = (groups[c][t] for t in range(len(samples)) for c in order if t < len(groups[c]))
    return [sample for sample, _ in zip(turns, range(n))]


def stratified_split(
    samples: Sequence[Sample], valid_fraction: float, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """A seeded split that gives every class its share of the validation part.

    A class of one image stays in training; a class of more gives at least one to each part.
    """
    if not 0 < valid_fraction < 1:
        raise UserError(f"valid_fraction: {valid_fraction} is not between 0 and 1")
    train: list[Sample] = []
    valid: list[Sample] = []
    for _, group in sorted(by_class(samples, seed).items()):
        n = min(len(group) - 1, max(1, round(len(group) * valid_fraction)))
        valid += group[:n]
        train += group[n:]
    return train, valid
