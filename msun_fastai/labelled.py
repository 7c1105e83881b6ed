"""Which labelled images a trained model is looked at with: those of its run, or others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msun_fastai.data.bad import BadImage
from msun_fastai.data.chosen import load_source
from msun_fastai.data.folders import undivided
from msun_fastai.data.samples import Sample, Source, take_evenly
from msun_fastai.data.scan import find_bad
from msun_fastai.data.sources import source_from_name, source_from_path
from msun_fastai.data.stream import StreamSource
from msun_fastai.errors import UserError
from msun_fastai.models.saving import SavedModel
from msun_fastai.recipe import Recipe, default_recipe, load_recipe
from msun_fastai.runfolder import RECIPE

# measured: what a run's figures are of, the test part or else the validation part
PARTS = ("measured", "train", "valid", "test", "all")
SHOWN = 3  # class names that an error repeats


@dataclass(frozen=True)
class Labelled:
    """Images to look at a model with. name: of the data. part: of it, or `all`. samples:
    those whose header can be read. bad: the others. source: all parts of the data, with its
    notes."""

    name: str
    part: str
    samples: list[Sample]
    source: Source
    bad: list[BadImage] = field(default_factory=list)


def find_images(
    run: Path | str,
    saved: SavedModel,
    dataset: str | None = None,
    data: str | None = None,
    root: str | None = None,
    limit: int | None = None,
    part: str = "measured",
    seed: int = 42,
) -> Labelled:
    """The images of `part` of a dataset by name, or of a folder or CSV file, or else of the data
    that the model in `run` was trained on, split as they were then.

    root: where datasets are. limit: at most so many images, spread over the classes by `seed`.
    Raises `UserError`, where their classes are not the model's, too.
    """
    recipe = run_recipe(run)
    if dataset is not None and data is not None:
        raise UserError("--dataset, --data: two places to take images from; choose one")
    source = _source(run, recipe, dataset, data, root, seed)
    check_classes(source, saved.classes)
    named = {
        "measured": source.measured,
        "train": source.train,
        "valid": source.valid,
        "test": source.test,
        "all": source.samples,
    }
    if part not in named:
        raise UserError(f"part: unknown value {part!r}; known: {', '.join(PARTS)}")
    if not named[part]:
        raise UserError(f"{source.name}: has no {part} part")
    samples = named[part]
    if limit is not None:
        if limit < 1:
            raise UserError(f"limit: {limit} is not a number of images; give at least 1")
        samples = take_evenly(samples, limit, seed)
    looked = find_bad(replace(source, train=[], valid=samples, test=[]))
    if not looked.source.valid:
        raise UserError(f"{source.name}: no image in {part} can be read; {looked.bad[0].reason}")
    shown = part
    if part == "measured":  # of what has no parts all
        shown = "test" if source.test else "validation" if source.train else "all"
    return Labelled(source.name, shown, looked.source.valid, source, looked.bad)


def run_recipe(run: Path | str) -> Recipe | None:
    """The recipe of a run folder; None for a model folder without one."""
    file = Path(run) / RECIPE
    return load_recipe(str(file)) if file.is_file() else None


def _source(
    run: Path | str,
    recipe: Recipe | None,
    dataset: str | None,
    data: str | None,
    root: str | None,
    seed: int,
) -> Source:
    if recipe is None:
        if dataset is None and data is None:
            raise UserError(f"{run}: does not say which data; give --dataset or --data")
        recipe = default_recipe("finetune")
    whole = (dataset, data) != (None, None)
    if not whole or _is_own(recipe, dataset, data):
        return _own_source(recipe, root, whole)
    if data is None:
        return source_from_name(str(dataset), root, seed)
    samples = undivided(data)
    if samples is None:
        return source_from_path(data, seed=seed)
    classes = sorted({s.label for s in samples})
    return Source(Path(data).resolve().name, [], samples, classes)


def _is_own(recipe: Recipe, dataset: str | None, data: str | None) -> bool:
    """Whether the data that are named are those of the run, however their path is written."""
    if data is None:
        return dataset == recipe.data.dataset
    return recipe.data.path is not None and Path(data).resolve() == Path(recipe.data.path).resolve()


def _own_source(recipe: Recipe, root: str | None, whole: bool) -> Source:
    """The data of a run, in the parts that it had; whole: without the run's limit on images."""
    values: dict[str, Any] = {}
    if whole:
        values = {"data.limit": None, "data.stream": False, "data.hub_id": "", "data.revision": ""}
    if root is not None:
        values["data.root"] = root
    source = load_source(recipe.with_values(values, "data"))
    if isinstance(source, StreamSource):
        raise UserError(
            f"{source.name}: the run's data are a stream; take a local copy with --dataset and "
            "--data-root"
        )
    return source


def check_classes(source: Any, classes: Sequence[str]) -> None:
    """Raise `UserError` where `source` has classes that a model of `classes` does not know."""
    unknown = sorted(set(source.classes) - set(classes))
    if unknown:
        names = ", ".join(repr(name) for name in unknown[:SHOWN])
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise UserError(
            f"{source.name}: the model knows {len(classes)} classes, such as {classes[0]!r}, and "
            f"not {names}{more}"
        )
