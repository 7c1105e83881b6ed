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

from msun_fastai.callbacks.console import warnings_told
from msun_fastai.checkpoints import CheckpointFolder
from msun_fastai.choices import baseline_recipe, check_choices, resolved
from msun_fastai.data.bad import bad_lines
from msun_fastai.data.chosen import load_source
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.samples import Source
from msun_fastai.data.scan import Scan, scan
from msun_fastai.data.stream import StreamSource
from msun_fastai.devices import pick_device
from msun_fastai.errors import Stopped, TrainingError, UserError
from msun_fastai.files import write_json, write_rows, write_text
from msun_fastai.fits import check_parent, fit, is_fit
from msun_fastai.learner import Consistency, msun_learner, probe_groups, save_learner, saved_model
from msun_fastai.measure import Measured, measure
from msun_fastai.plots import plot_history, read_history
from msun_fastai.processes import gathered, is_main, joined_processes, process_rank, world
from msun_fastai.recipe import Recipe
from msun_fastai.report.page import make_report
from msun_fastai.runfolder import (
    FINISHED,
    check_same_processes,
    check_same_recipe,
    environment,
    is_unfinished,
    new_run_folder,
)
from msun_fastai.scales import check_scales
from msun_fastai.schedules import make_optimizer
from msun_fastai.stopping import StopRequest, stop_on_signals
from msun_fastai.training import train

# words in the errors of what processes do together
COLLECTIVES = ("gloo", "nccl", "connection closed", "connection reset")


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
        folder = _folder(prepared, run_dir)
        _say(console, f"run folder {folder}")
        seconds = _trained(prepared, folder, console)
        if not is_main():
            return RunResult(folder, {})
        done = [(prepared, folder, _measured(prepared, folder, console, seconds))]
        if prepared.recipe.baseline is not None:
            done.append(_run_baseline(prepared, folder / "baseline", console))
            done[0][2].metrics["baseline"] = done[1][2].metrics
        for _, where, measured in reversed(done):  # with them the run is over
            write_json(where / FINISHED, measured.metrics)
        for one, where, measured in done:
            _report(one, where, measured, console)
        return RunResult(folder, done[0][2].metrics)


def _run_baseline(
    prepared: Prepared, folder: Path, console: Console
) -> tuple[Prepared, Path, Measured]:
    """Train and measure the baseline that the recipe names, on the same data."""
    recipe, found = resolved(baseline_recipe(prepared.recipe)), prepared.found
    learn = make_learner(recipe, found.source, found.count("train"))
    baseline = Prepared(recipe, found, learn)
    seconds = _trained(baseline, folder, console)
    return baseline, folder, _measured(baseline, folder, console, seconds)


def _report(prepared: Prepared, folder: Path, measured: Measured, console: Console) -> None:
    """Write the run's report, which can be made again."""
    if prepared.recipe.train.report:
        saved, samples = saved_model(prepared.learn), prepared.found.source.measured
        with warnings_told(console):
            page = make_report(folder, saved, samples, measured)
        _say(console, f"report {page}")


def prepare(recipe: Recipe, console: Console) -> Prepared:
    """Find the data and make the Learner, telling what there is. Raises `UserError`."""
    recipe = resolved(recipe)
    source = load_source(recipe)
    check_parent(recipe, source.classes)
    for note in source.notes:
        _say(console, note)
    if isinstance(source, StreamSource):
        found = Scan(source, [])  # its headers come with its pixels
    else:
        found = scan(source, recipe.data.on_bad_image, recipe.data.max_bad)
    for line in bad_lines(found.bad):
        _say(console, line)
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
    label += f"-{recipe.verb}" if recipe.verb in ("linear-probe", "calibrate") else ""
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
        if is_fit(recipe):
            seconds = _fitted(prepared, folder, console, stop)
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


def _fitted(prepared: Prepared, folder: Path, console: Console, stop: StopRequest) -> float:
    """A fit that takes no steps of training; seconds of it."""
    learn, source = prepared.learn, prepared.found.source
    fitted = fit(prepared.recipe, saved_model(learn), source, folder, stop.check)
    learn.model = fitted.saved.model
    for reason in fitted.unreadable:
        learn.dls.train.bad.mark(reason)
    for line in fitted.lines:
        _say(console, line)
    return fitted.seconds


def _measured(prepared: Prepared, folder: Path, console: Console, seconds: float) -> Measured:
    """The figures of what was trained; the images that could not be read are listed in a file."""
    with warnings_told(console):
        measured = measure(prepared.recipe, prepared.found, prepared.learn, seconds)
    if bad := measured.bad:
        write_rows(folder / "bad_images.csv", [asdict(image) for image in bad])
        what = "1 image" if len(bad) == 1 else f"{len(bad)} images"
        _say(console, f"{what} could not be read, left out; see {folder / 'bad_images.csv'}")
    return measured


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
        meta_hidden=model.meta_hidden,
        views=options.views,
        consistency=Consistency(**recipe.consistency.model_dump()),
        reduced=options.reduced,
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
