"""From a dataset's splits to training, validation and test part: roles, protocols, counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized

from msun_fastai.data.catalog import Entry
from msun_fastai.data.samples import Sample, Source, by_class, make_source, stratified_split
from msun_fastai.errors import UserError

TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("valid", "val", "validation")
TEST_NAMES = ("test", "testing")
VALID_FRACTION = 0.2  # held out of a dataset of one split that has no protocol

Splits = Mapping[str, Sequence[Sample]]


def source_from_splits(
    where: str, entry: Entry, splits: Splits, classes: Sequence[str], seed: int = 42
) -> Source:
    """The parts of a dataset that has `splits`, each under its own name.

    Roles are the catalogue's, or else read off the names. Training is watched on the validation
    split, or on the test split where there is no other (nothing is chosen on it). A dataset of one
    split is divided by `seed`: by its protocol's number of training images a class, or else a fifth
    is held out. Fewer images than the catalogue says are noted. Raises `UserError`.
    """
    train = pick(splits, (entry.train, *TRAIN_NAMES))
    if train is None or not splits[train]:
        what = f"no split {entry.train}" if train is None else f"no images in {train}"
        raise UserError(f"{where}: {what}; it has {', '.join(splits)}")
    valid = pick(splits, (entry.valid, *VALID_NAMES))
    test = pick(splits, (entry.test, *TEST_NAMES))
    needed = entry.test or (entry.valid if test is None else "")
    if needed and (test if entry.test else valid) is None:
        raise UserError(f"{where}: no split {needed}; it has {', '.join(splits)}")
    if entry.classes and len(classes) != entry.classes:
        raise UserError(f"{where}: {len(classes)} classes; {entry.name} has {entry.classes}")
    notes = missing_images(entry, splits)
    trained = list(splits[train])
    if valid is None and test is None:
        if entry.per_class:
            trained, rest = some_of_each(trained, entry.per_class, seed)
        else:
            trained, rest = stratified_split(trained, VALID_FRACTION, seed)
        return make_source(entry.name, trained, rest, classes, notes=notes)
    held = list(splits[test]) if test else []
    watched = list(splits[valid]) if valid else held
    return make_source(
        entry.name, trained, watched, classes, test=held if valid else (), notes=notes
    )


def pick(splits: Collection[str], names: Sequence[str]) -> str | None:
    """The first of `names` that is among the splits."""
    return next((name for name in names if name and name in splits), None)


def some_of_each(samples: Sequence[Sample], n: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """`n` images of each class, drawn by `seed`, and the others; a class keeps one for those."""
    taken: list[Sample] = []
    rest: list[Sample] = []
    for _, group in sorted(by_class(samples, seed).items()):
        k = min(n, len(group) - 1) or len(group)
        taken += group[:k]
        rest += group[k:]
    return taken, rest


def missing_images(entry: Entry, splits: Mapping[str, Sized]) -> tuple[str, ...]:
    """What the catalogue says of a split and what is there, where that is less."""
    less = [
        f"{len(splits[name]):,} of {count:,} images in {name}"
        for name, count in entry.splits.items()
        if name in splits and len(splits[name]) < count
    ]
    return (f"{entry.name}: a part of the dataset: {', '.join(less)}",) if less else ()
