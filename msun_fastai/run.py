"""From a recipe to a run folder: data, Learner, training, evaluation, files."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import ParamScheduler
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from rich.console import Console

from msun_fastai.callbacks.console import ConsoleProgress, History, tell_bad, warnings_told
from msun_fastai.data.bad import ON_BAD_IMAGE
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.resize import AUGMENTATIONS, RESIZE_RULES
from msun_fastai.data.samples import Source
from msun_fastai.data.scan import Scan, scan
from msun_fastai.data.sources import data_root, source_from_name, source_from_path
from msun_fastai.data.stream import StreamSource, stream_source
from msun_fastai.devices import pick_device
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.files import write_json, write_rows, write_text
from msun_fastai.learner import Consistency, msun_learner, save_learner
from msun_fastai.losses import DISTANCES
from msun_fastai.measure import measure
from msun_fastai.models.methods import METHODS, find_method
from msun_fastai.models.net import NetConfig
from msun_fastai.recipe import DataSection, Recipe
from msun_fastai.runfolder import check_empty, environment, new_run_folder
from msun_fastai.scales import VIEWS, check_choice, check_scales
from msun_fastai.schedules import OPTIMIZERS, SCHEDULES, make_optimizer, warmup_cosine


@dataclass(frozen=True)
class RunResult:
    """Where a run's folder is and what it measured; `metrics` is what `metrics.json` holds."""

    folder: Path
    metrics: dict[str, Any]


def finetune(recipe: Recipe, console: Console, run_dir: Path | str | None = None) -> RunResult:
    """Train what `recipe` says, and its baseline where it names one; write the run folder.

    Everything that can be wrong with the input is checked before anything is written or trained.
    Raises `UserError`.
    """
    check_choices(recipe, run_dir)
    source = load_source(recipe)
    for note in source.notes:
        console.print(note, highlight=False, soft_wrap=True)
    if isinstance(source, StreamSource):
        found = Scan(source, [])  # its headers come with its pixels
    else:
        found = scan(source, recipe.data.on_bad_image, recipe.data.max_bad)
    tell_bad(found.bad, console)
    console.print(about(source), highlight=False, soft_wrap=True)
    # the first Learner before the folder: its weights or its data may turn out to be missing
    recipe = resolved(recipe)
    learn = make_learner(recipe, found.source, found.count("train"))
    folder = new_run_folder(f"{source.name}-{recipe.model.method}", run_dir)
    console.print(f"run folder {folder}", highlight=False, soft_wrap=True)
    metrics = train_one(recipe, found, learn, folder, console)
    if recipe.baseline is not None:
        other = resolved(baseline_recipe(recipe))
        learn = make_learner(other, found.source, found.count("train"))
        metrics["baseline"] = train_one(other, found, learn, folder / "baseline", console)
        write_json(folder / "metrics.json", metrics)
    return RunResult(folder, metrics)


def about(source: Source | StreamSource) -> str:
    """What there is to train on, in a line."""
    parts = {"to train on": source.train, "to watch": source.valid, "to test on": source.test}
    counts = ", ".join(f"{len(part):,} {use}" for use, part in parts.items() if len(part))
    return f"{source.name}: {len(source.classes)} classes; {counts}"


def check_choices(recipe: Recipe, run_dir: Path | str | None) -> None:
    """Raise `UserError` for whatever is wrong with the recipe before its data are looked at."""
    model = recipe.model
    options = model.model_dump(exclude={"pretrained", "weights"})
    NetConfig(n_classes=2, **{**options, "scales": check_scales(model.scales)})
    Consistency(**recipe.consistency.model_dump())
    find_method(model.method).consistency(recipe.consistency.kind, model.scales, recipe.train.views)
    check_choice("distance", recipe.consistency.distance, DISTANCES)
    check_choice("views", recipe.train.views, VIEWS)
    check_choice("augment", recipe.data.augment, AUGMENTATIONS)
    check_choice("resize", recipe.data.resize, RESIZE_RULES)
    check_choice("on_bad_image", recipe.data.on_bad_image, ON_BAD_IMAGE)
    check_choice("optimizer", recipe.train.optimizer, OPTIMIZERS)
    check_choice("schedule", recipe.train.schedule, SCHEDULES)
    if recipe.train.schedule == "cosine" and recipe.train.warmup >= recipe.train.epochs:
        raise UserError(
            f"train.warmup: {recipe.train.warmup:g} epochs of warm-up in a training of "
            f"{recipe.train.epochs}; give fewer"
        )
    pick_device(recipe.train.device)
    if model.weights is not None and not Path(model.weights).is_file():
        raise UserError(f"weights {model.weights}: no such file")
    if recipe.baseline is not None:
        check_choice("baseline", recipe.baseline, METHODS)
        if recipe.baseline == model.method:
            raise UserError(f"baseline: {recipe.baseline} is the method itself; name another")
        check_choices(baseline_recipe(recipe), None)
    if run_dir is not None and Path(run_dir).exists():
        check_empty(Path(run_dir))


def baseline_recipe(recipe: Recipe) -> Recipe:
    """The recipe of the baseline's own run: the same, but for what is its method's own.

    Its consistency and alignment are, whatever the recipe says of them, so that a run's resolved
    recipe gives the same baseline again.
    """
    method = find_method(str(recipe.baseline))
    values: dict[str, Any] = {"model.method": method.name, "baseline": None}
    values |= {"consistency.kind": None, "model.alignment": None}
    if not method.private_shallow:
        values["model.grids"] = None
    if not method.private_shallow or method.private_deep:
        values["model.norm"] = "shared"
    return recipe.with_values(values, "baseline")


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with its method's own choices written out where it leaves them open."""
    model, method = recipe.model, find_method(recipe.model.method)
    kind = method.consistency(recipe.consistency.kind, model.scales, recipe.train.views)
    alignment = model.alignment or method.alignment
    return recipe.with_values({"consistency.kind": kind, "model.alignment": alignment}, "recipe")


def load_source(recipe: Recipe) -> Source | StreamSource:
    """The recipe's data, limited as it says. Raises `UserError`."""
    data, seed = recipe.data, recipe.train.seed
    if (data.dataset is None) == (data.path is None):
        raise UserError("name the data: either --dataset NAME or --data PATH")
    if data.stream:
        return _load_stream(data)
    if data.hub_id or data.revision:
        raise UserError(
            "data.hub_id, data.revision: for data.stream; `msun-fastai datasets prepare` takes "
            "--hub-id and --revision"
        )
    if data.dataset is not None:
        source = source_from_name(data.dataset, data.root, seed)
    else:
        columns = data.model_dump(include={"path_column", "label_column", "split_column"})
        source = source_from_path(str(data.path), data.valid_fraction, seed, columns)
    if data.carve is not None:
        source = source.carved(data.carve, seed)
    return source.limited(data.limit, seed)


def _load_stream(data: DataSection) -> Source | StreamSource:
    if data.dataset is None:
        raise UserError("data.stream: streams a dataset by name; name it with --dataset")
    if data.carve is not None:
        raise UserError("data.carve: nothing can be carved out of a stream; choose one of them")
    if data.cache and data.limit is None:
        raise UserError("data.cache: a stream keeps nothing in memory; choose one of them")
    source = stream_source(data.dataset, data_root(data.root), data.hub_id, data.revision)
    return source if data.limit is None else source.first(data.limit)


def make_learner(recipe: Recipe, source: Source | StreamSource, left_out: int = 0) -> Learner:
    """The Learner of `recipe`, seeded: the same recipe gives the same weights.

    left_out: training images that were found to be bad before.
    """
    model, train, data = recipe.model, recipe.train, recipe.data
    set_seed(train.seed, reproducible=True)
    device = pick_device(train.device)
    streamed = isinstance(source, StreamSource)
    factory: Any = getattr(NativeImageDataLoaders, "from_stream" if streamed else "from_source")
    dls = factory(
        source,
        scales=check_scales(model.scales),
        routing=model.routing,
        views=train.views,
        augment=data.augment,
        resize=data.resize,
        cache=data.cache,
        on_bad_image=data.on_bad_image,
        max_bad=data.max_bad,
        left_out=left_out,
        seed=train.seed,
        bs=train.bs,
        num_workers=data.workers,
        device=device,
    )
    learn = msun_learner(
        dls,
        model.arch,
        method=model.method,
        blocks=model.blocks,
        alignment=model.alignment,
        grids=model.grids,
        norm=model.norm,
        views=train.views,
        consistency=Consistency(**recipe.consistency.model_dump()),
        pretrained=model.pretrained and model.weights is None,
        weights=model.weights,
        metrics=accuracy,
        wd=train.wd,
        opt_func=make_optimizer(train.optimizer, train.momentum),
    )
    if len(dls.train) == 0:
        raise UserError(
            f"{source.name}: {len(source.train)} training images make no batch; give more"
        )
    learn.model.to(device)
    learn.remove_cbs(learn._grab_cbs(ProgressCallback))  # it floods a log that is no terminal
    learn.logger = _silent
    return learn


def _silent(row: Any) -> None:
    """In place of fastai's printing of each epoch; `ConsoleProgress` shows it."""


def train_one(
    recipe: Recipe, found: Scan, learn: Learner, folder: Path, console: Console
) -> dict[str, Any]:
    """Train one Learner and write its folder; returns its metrics."""
    method = recipe.model.method
    write_text(folder / "recipe.toml", recipe.to_toml())
    write_json(folder / "environment.json", environment(learn.dls.device))
    train = recipe.train
    started = time.perf_counter()
    with warnings_told(console), ConsoleProgress(console, method) as progress:
        cbs = [progress, History(folder / "history.csv")]
        if train.schedule == "cosine":
            learn.unfreeze()
            rate = partial(warmup_cosine, warmup=train.warmup / train.epochs)
            cbs.append(ParamScheduler({"lr": lambda position: train.lr * rate(position)}))
            learn.fit(train.epochs, train.lr, cbs=cbs)
        elif recipe.model.pretrained or recipe.model.weights is not None:
            learn.fine_tune(train.epochs, base_lr=train.lr, cbs=cbs)
        else:
            learn.fit_one_cycle(train.epochs, train.lr, cbs=cbs)
    seconds = time.perf_counter() - started
    if not math.isfinite(learn.recorder.values[-1][0]):
        raise TrainingError(f"{method}: the loss is not finite any more; try a lower --lr")
    save_learner(learn, folder / "model")
    with warnings_told(console):
        metrics, bad = measure(recipe, found, learn, seconds)
    write_json(folder / "metrics.json", metrics)
    if bad:
        write_rows(folder / "bad_images.csv", [asdict(image) for image in bad])
        console.print(
            f"{len(bad)} images could not be read and were left out; {folder / 'bad_images.csv'} "
            "names them",
            highlight=False,
            soft_wrap=True,
        )
    return metrics
