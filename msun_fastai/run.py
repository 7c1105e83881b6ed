"""From a recipe to a run folder: data, Learner, training, evaluation, files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from rich.console import Console

from msun_fastai.callbacks.console import tell_bad, warnings_told
from msun_fastai.callbacks.step import PRECISIONS, check_precision
from msun_fastai.checkpoints import CheckpointFolder
from msun_fastai.data.bad import ON_BAD_IMAGE
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.resize import AUGMENTATIONS, RESIZE_RULES
from msun_fastai.data.samples import Source
from msun_fastai.data.scan import Scan, scan
from msun_fastai.data.sources import data_root, source_from_name, source_from_path
from msun_fastai.data.stream import StreamSource, stream_source
from msun_fastai.devices import pick_device
from msun_fastai.errors import Stopped, TrainingError, UserError
from msun_fastai.files import write_json, write_rows, write_text
from msun_fastai.learner import Consistency, msun_learner, probe_groups, save_learner, saved_model
from msun_fastai.losses import DISTANCES
from msun_fastai.measure import measure
from msun_fastai.models.methods import METHODS, find_method
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import find_model_folder, load_model_folder
from msun_fastai.plots import plot_history, read_history
from msun_fastai.probe import PROTOCOLS, linear_probe
from msun_fastai.processes import gathered, is_main, joined_processes, process_rank, world
from msun_fastai.recipe import VERBS, DataSection, Recipe
from msun_fastai.runfolder import (
    FINISHED,
    check_same_processes,
    check_same_recipe,
    environment,
    is_unfinished,
    new_run_folder,
)
from msun_fastai.scales import VIEWS, check_choice, check_scales
from msun_fastai.schedules import OPTIMIZERS, SCHEDULES, make_optimizer
from msun_fastai.stopping import StopRequest, stop_on_signals
from msun_fastai.training import KEEPS, check_log, train

# words in the errors of what processes do together
COLLECTIVES = ("gloo", "nccl", "connection closed", "connection reset")
HELD_OUT = 0.2  # of the training images, for a probe to choose its strength on


@dataclass(frozen=True)
class RunResult:
    """Where a run's folder is and what it measured; `metrics` is what `metrics.json` holds (empty
    in all but the first of several processes)."""

    folder: Path
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What a run starts from: its recipe with everything written out, its data, its Learner."""

    recipe: Recipe
    found: Scan
    learn: Learner


def run(recipe: Recipe, console: Console, run_dir: Path | str | None = None) -> RunResult:
    """Train what `recipe` says, and its baseline where it names one; write the run folder.

    A `run_dir` that holds an unfinished run of the same recipe goes on where that one stopped.
    Everything that can be wrong with the input is checked before anything is written or trained.
    In several processes (`torchrun`) the first one prints, writes and measures. Raises `UserError`,
    `TrainingError`, and `Stopped` where a signal ended it.
    """
    check_choices(recipe, run_dir)
    with joined_processes(pick_device(recipe.train.device).type):
        if not is_main():
            console = Console(quiet=True)
        prepared = prepare(recipe, console)
        recipe, found = prepared.recipe, prepared.found
        folder = _folder(prepared, run_dir)
        _say(console, f"run folder {folder}")
        seconds = _trained(prepared, folder, console)
        if not is_main():
            return RunResult(folder, {})
        metrics = _measured(prepared, folder, console, seconds)
        if recipe.baseline is None:
            write_json(folder / FINISHED, metrics)
            return RunResult(folder, metrics)
        other = resolved(baseline_recipe(recipe))
        learn = make_learner(other, found.source, found.count("train"))
        baseline, beside = Prepared(other, found, learn), folder / "baseline"
        seconds = _trained(baseline, beside, console)
        metrics["baseline"] = _measured(baseline, beside, console, seconds)
        write_json(beside / FINISHED, metrics["baseline"])
        write_json(folder / FINISHED, metrics)
        return RunResult(folder, metrics)


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Find the data and make the Learner, telling what there is. Raises `UserError`."""
    recipe = resolved(recipe)
    source = load_source(recipe)
    for note in source.notes:
        _say(console, note)
    if isinstance(source, StreamSource):
        found = Scan(source, [])  # its headers come with its pixels
    else:
        found = scan(source, recipe.data.on_bad_image, recipe.data.max_bad)
    tell_bad(found.bad, console)
    _say(console, about(source))
    if not source.test and (recipe.train.keep == "best" or recipe.train.patience):
        _say(
            console,
            "the epoch is chosen on the part that the accuracy is reported on; "
            "--set data.carve=0.1 holds another one out for it",
        )
    return Prepared(recipe, found, make_learner(recipe, found.source, found.count("train")))


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def about(source: Source | StreamSource) -> str:
    """What there is to train on, in a line."""
    parts = {"to train on": source.train, "to watch": source.valid, "to test on": source.test}
    counts = ", ".join(f"{len(part):,} {use}" for use, part in parts.items() if len(part))
    return f"{source.name}: {len(source.classes)} classes; {counts}"


def _folder(prepared: Prepared, run_dir: Path | str | None) -> Path:
    """The run's folder, the same in all processes. Raises `UserError` where it is another run's."""
    recipe, found = prepared.recipe, prepared.found
    label = f"{found.source.name}-{recipe.model.method}"
    label += "-linear-probe" if recipe.verb == "linear-probe" else ""
    folder = None
    if is_main():
        goes_on = run_dir is not None and is_unfinished(Path(run_dir))
        if goes_on:
            check_same_recipe(Path(str(run_dir)), recipe)
            check_same_processes(Path(str(run_dir)), world())
        folder = new_run_folder(label, run_dir)
    return Path(gathered(str(folder))[0])


def _trained(prepared: Prepared, folder: Path, console: Console) -> float:
    """Train the Learner, from its last checkpoint if there is one; seconds of training."""
    recipe, learn = prepared.recipe, prepared.learn
    if is_main():
        write_text(folder / "recipe.toml", recipe.to_toml())
        write_json(folder / "environment.json", environment(learn.dls.device, folder, world()))
    with stop_on_signals() as stop, going_on_told(folder):
        if recipe.verb == "linear-probe" and recipe.probe.protocol == "cached":
            seconds = _probed(prepared, folder, console, stop)
        else:
            seconds = train(recipe, learn, folder, console, stop)
            if is_main():
                plot_history(read_history(folder / "history.csv"), folder / "plots")
        if is_main():
            save_learner(learn, folder / "model")
        stop.check()
    return seconds


@contextmanager
def going_on_told(folder: Path) -> Iterator[None]:
    """What ends a training, with how to go on in what it says."""
    try:
        yield
    except Stopped as error:
        if CheckpointFolder(folder / "checkpoints").files():
            error.message += f"; --resume {folder} goes on"
        raise
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if world() == 1 or not any(word in text.lower() for word in COLLECTIVES):
            raise
        raise TrainingError(
            f"another process is gone; --resume {folder} goes on ({text[:200]})"
        ) from error


def _probed(prepared: Prepared, folder: Path, console: Console, stop: StopRequest) -> float:
    """A linear probe on features that are taken once; seconds for features and classifier."""
    recipe, learn, source = prepared.recipe, prepared.learn, prepared.found.source
    if world() > 1:
        raise UserError("linear-probe: a cached probe is one process's work; start it without more")
    if isinstance(source, StreamSource):
        raise UserError(
            "linear-probe: a stream has no part to choose the strength on; take a local copy, or "
            "--protocol sgd"
        )
    held_out = not source.test
    if held_out:  # else what is there to choose on is the test part itself
        source = source.carved(HELD_OUT, recipe.train.seed)
    saved, report = linear_probe(
        saved_model(learn),
        source.train,
        source.valid,
        recipe.probe.strengths,
        recipe.train.views,
        recipe.train.bs,
        recipe.data.workers,
        folder,
        recipe.data.on_bad_image,
        recipe.data.max_bad,
        stop.check,
        refit=held_out,
    )
    learn.model.load_state_dict(saved.model.state_dict())
    for reason in [*report["unreadable"]["train"], *report["unreadable"]["valid"]]:
        learn.dls.train.bad.mark(reason)
    seconds = report["seconds"]
    for head in report["heads"]:
        for note in head["notes"]:
            _say(console, note)
        _say(
            console,
            f"strength {head['strength']:g}: the best on {report['images']['valid']:,} images held "
            "out of the training part",
        )
    _say(
        console,
        f"features of {report['images']['train']:,} images: {seconds['features']:.1f} s, "
        f"classifier: {seconds['fit']:.1f} s",
    )
    write_json(folder / "probe.json", report)
    return seconds["features"] + seconds["fit"]


def _measured(prepared: Prepared, folder: Path, console: Console, seconds: float) -> dict[str, Any]:
    """The metrics of what was trained; the images that could not be read are listed in a file."""
    with warnings_told(console):
        metrics, bad = measure(prepared.recipe, prepared.found, prepared.learn, seconds)
    if bad:
        write_rows(folder / "bad_images.csv", [asdict(image) for image in bad])
        _say(
            console,
            f"{len(bad)} images could not be read and were left out; {folder / 'bad_images.csv'} "
            "names them",
        )
    return metrics


def check_choices(recipe: Recipe, run_dir: Path | str | None) -> None:
    """Raise `UserError` for whatever is wrong with the recipe before its data are looked at."""
    model, options = recipe.model, recipe.train
    check_choice("verb", recipe.verb, VERBS)
    if model.start is None:
        named = model.model_dump(exclude={"pretrained", "weights", "start"})
        NetConfig(n_classes=2, **{**named, "scales": check_scales(model.scales)})
        method = find_method(model.method)
        method.consistency(recipe.consistency.kind, model.scales, options.views)
    else:
        find_model_folder(model.start)
    Consistency(**recipe.consistency.model_dump())
    check_choice("distance", recipe.consistency.distance, DISTANCES)
    check_choice("views", options.views, VIEWS)
    check_choice("augment", recipe.data.augment, AUGMENTATIONS)
    check_choice("resize", recipe.data.resize, RESIZE_RULES)
    check_choice("on_bad_image", recipe.data.on_bad_image, ON_BAD_IMAGE)
    check_choice("optimizer", options.optimizer, OPTIMIZERS)
    check_choice("schedule", options.schedule, SCHEDULES)
    check_choice("keep", options.keep, KEEPS)
    check_choice("precision", options.precision, PRECISIONS)
    check_choice("protocol", recipe.probe.protocol, PROTOCOLS)
    if options.log is not None:
        check_log(options.log)
    if recipe.verb == "pretrain" and (model.pretrained or model.weights is not None):
        raise UserError(
            "pretrain: starts from random weights; set model.pretrained = false (--no-pretrained), "
            "or finetune"
        )
    if options.schedule == "cosine" and options.warmup >= options.epochs:
        raise UserError(
            f"train.warmup: {options.warmup:g} epochs of warm-up in a training of "
            f"{options.epochs}; give --set train.warmup={options.epochs / 10:g} or the like"
        )
    check_precision(options.precision, pick_device(options.device))
    if process_rank()[1] > 1 and ":" in (options.device or ""):
        raise UserError(
            f"device {options.device}: each of several processes takes its own; say cuda or cpu"
        )
    if recipe.data.stream and process_rank()[1] > 1 and options.views != "all":
        raise UserError(
            f"views {options.views}: the processes' batches of a stream would not be of one scale; "
            "take views all, or a local copy"
        )
    if model.weights is not None and not Path(model.weights).is_file():
        raise UserError(f"weights {model.weights}: no such file")
    if model.weights is not None and model.start is not None:
        raise UserError("model.start, model.weights: two networks to start from; choose one")
    if recipe.baseline is not None:
        _check_baseline(recipe)
    if run_dir is not None and is_main():
        is_unfinished(Path(run_dir))


def _check_baseline(recipe: Recipe) -> None:
    check_choice("baseline", str(recipe.baseline), METHODS)
    if recipe.baseline == recipe.model.method:
        raise UserError(f"baseline: {recipe.baseline} is the method itself; name another")
    if recipe.model.start is not None:
        raise UserError("baseline: a trained network is of its own method; leave the baseline out")
    if process_rank()[1] > 1:
        raise UserError("baseline: in several processes train it by a run of its own")
    check_choices(baseline_recipe(recipe), None)


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
    """The recipe with what it leaves open written out: its method's own choices, and the network
    and preprocessing of the trained model that it starts from."""
    if recipe.model.start is not None:
        saved = load_model_folder(recipe.model.start)
        network = saved.model.config.as_dict()
        network.pop("n_classes")
        values = {f"model.{key}": value for key, value in network.items()}
        values |= {"data.resize": saved.preprocessing.resize, "model.pretrained": False}
        values["model.start"] = str(Path(recipe.model.start).resolve())  # to go on from anywhere
        recipe = recipe.with_values(values, "recipe")
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
    if data.classes is not None:
        source = source.of_classes(data.classes)
    if data.carve is not None:
        source = source.carved(data.carve, seed)
    return source.limited(data.limit, seed)


def _load_stream(data: DataSection) -> Source | StreamSource:
    if data.dataset is None:
        raise UserError("data.stream: streams a dataset by name; name it with --dataset")
    if data.classes is not None:
        raise UserError("data.classes: a stream is read as it is; choose one of them")
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
    model, options, data = recipe.model, recipe.train, recipe.data
    set_seed(options.seed, reproducible=True)
    device = pick_device(options.device)
    streamed = isinstance(source, StreamSource)
    factory: Any = getattr(NativeImageDataLoaders, "from_stream" if streamed else "from_source")
    dls = factory(
        source,
        scales=check_scales(model.scales),
        routing=model.routing,
        views=options.views,
        augment=data.augment,
        resize=data.resize,
        cache=data.cache,
        on_bad_image=data.on_bad_image,
        max_bad=data.max_bad,
        left_out=left_out,
        seed=options.seed,
        bs=options.bs,
        num_workers=data.workers,
        device=device,
        rank=process_rank()[0],
        world=process_rank()[1],
    )
    probe = recipe.verb == "linear-probe"
    frozen: dict[str, Any] = {"splitter": probe_groups, "train_bn": False} if probe else {}
    learn = msun_learner(
        dls,
        model.arch,
        method=model.method,
        blocks=model.blocks,
        alignment=model.alignment,
        grids=model.grids,
        norm=model.norm,
        views=options.views,
        consistency=Consistency(**recipe.consistency.model_dump()),
        pretrained=model.pretrained and model.weights is None,
        weights=model.weights,
        start=model.start,
        loss_func=CrossEntropyLossFlat(label_smoothing=options.label_smoothing),
        metrics=accuracy,
        wd=options.wd,
        opt_func=make_optimizer(options.optimizer, options.momentum),
        **frozen,
    )
    if probe:
        learn.freeze()
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
