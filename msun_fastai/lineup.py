"""Several methods trained on the same data, with several seeds, and tested on the same images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console

from msun_fastai.choices import resolved, seed_of_parts
from msun_fastai.data.chosen import load_source
from msun_fastai.devices import pick_device
from msun_fastai.entries import Entry, entry_recipes
from msun_fastai.errors import OneLine, Stopped, UserError
from msun_fastai.evaluate import sweep
from msun_fastai.files import write_json
from msun_fastai.jobs import Job, side_by_side
from msun_fastai.labelled import find_images
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.saving import load_model_folder
from msun_fastai.processes import process_rank
from msun_fastai.recipe import Recipe
from msun_fastai.run import run
from msun_fastai.runfolder import FINISHED, RECIPE, is_unfinished, new_run_folder, other_value
from msun_fastai.scales import sweep_sizes
from msun_fastai.standings import Standing, Standings, Trained

TESTED = "sweep.json"  # in a run's folder: the test of its network at the sizes
WIDE = 1000  # columns of what another process prints


@dataclass(frozen=True)
class Training:
    """One of the trainings: which entry with which seed, its recipe, and its run folder."""

    entry: str
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in what is printed."""
        return f"{self.entry} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its run is over."""
        return (self.folder / FINISHED).is_file()


@dataclass(frozen=True)
class Lineup:
    """What is to be trained, all of it checked. folder: of the run folders. sizes: to test at."""

    folder: Path
    trainings: tuple[Training, ...]
    sizes: tuple[int, ...]


def plan_lineup(
    base: Recipe,
    entries: Sequence[Entry],
    seeds: int = 1,
    run_dir: Path | str | None = None,
    sizes: Sequence[int] | None = None,
) -> Lineup:
    """The trainings of `entries`, each with the seed of `base` and those after it, seed by seed.

    All see the same images, whatever their seed: `data.seed` is that of `base`. Reports are not
    written unless `base` asks for them. run_dir: `runs/methods-DATA-TIME` by default; what is there
    is kept where it is of the same recipe. sizes: sides in pixels, 13 over all scales by default.
    Raises `UserError` for everything that can be found out before anything is trained.
    """
    if process_rank()[1] > 1:
        raise UserError("methods: starts processes of its own (--jobs); leave torchrun out")
    base = _same_images(base)
    recipes = entry_recipes(base, entries)
    source = load_source(base)
    folder = Path(run_dir) if run_dir is not None else None
    if folder is None:
        folder = new_run_folder(f"methods-{source.name}", None)
    elif (folder / RECIPE).is_file():
        raise UserError(f"run folder {folder}: holds a run; name another for several of them")
    trainings = []
    for seed in range(base.train.seed, base.train.seed + seeds):
        for name, recipe in recipes.items():
            own = recipe.with_values({"train.seed": seed}, name)
            trainings.append(Training(name, seed, own, folder / name / f"seed-{seed}"))
    for training in trainings:
        _check_folder(training)
    sides = [side for recipe in (base, *recipes.values()) for side in recipe.model.scales]
    at = sweep_sizes(min(sides), max(sides)) if sizes is None else tuple(sizes)
    return Lineup(folder, tuple(trainings), at)


def _same_images(base: Recipe) -> Recipe:
    if base.verb == "linear-probe":
        raise UserError("recipe: a linear probe is of one network; methods are trained whole")
    if base.model.start is not None:
        raise UserError("model.start: a trained network is of its own method; leave it out")
    if base.data.stream:
        raise UserError("data.stream: networks are tested on a local copy; leave it out")
    values: dict[str, Any] = {}
    if base.data.seed is None:
        of_parent = seed_of_parts(base)
        values["data.seed"] = base.train.seed if of_parent is None else of_parent
    if "report" not in base.train.model_fields_set:  # seconds of pictures, for each
        values["train.report"] = False
    return base.with_values(values, "methods")


def _check_folder(training: Training) -> None:
    """Raise `UserError` where the run's folder holds something else."""
    folder = training.folder
    if not training.finished and not is_unfinished(folder):
        return
    apart = other_value(folder, resolved(training.recipe))
    if apart is not None:
        raise UserError(
            f"run folder {folder}: its run has {apart}; name another --run-dir, or remove it"
        )


def train_lineup(lineup: Lineup, console: Console, jobs: int = 1) -> Standings:
    """Train and test what is not yet there, `jobs` beside each other, and gather everything.

    With one job in this process; else each training has a process of its own and its share of
    this process's threads. Raises what a run raises, with its entry and seed in front.
    """
    todo = [t for t in lineup.trainings if not t.finished or not _is_tested(t, lineup.sizes)]
    untrained, there = sum(not t.finished for t in todo), len(lineup.trainings) - len(todo)
    counts = {"to train": untrained, "to test": len(todo) - untrained, "there": there}
    _say(console, ", ".join(f"{n} {what}" for what, n in counts.items() if n))
    try:
        if jobs == 1:
            for training in todo:
                _say(console, training.name)
                _train_and_test(training, lineup.sizes, console)
        else:
            threads = max(1, torch.get_num_threads() // jobs)
            work = [Job(t.name, _in_process, (t, lineup.sizes, threads)) for t in todo]
            side_by_side(work, jobs, lambda name, line: _say(console, f"{name}: {line}"))
    except Stopped as error:
        stopped = Stopped(error.signal)
        stopped.message += f"; the same command with --run-dir {lineup.folder} goes on"
        raise stopped from error
    return gathered(lineup)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def _in_process(said: TextIO, training: Training, sizes: tuple[int, ...], threads: int) -> None:
    """`_train_and_test` in a process that is there for it alone."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    _train_and_test(training, sizes, Console(file=said, width=WIDE))


def _train_and_test(training: Training, sizes: tuple[int, ...], console: Console) -> None:
    """One run, unless it is over, and the test of its network."""
    try:
        if not training.finished:
            run(training.recipe, console, training.folder)
        _test(training, sizes)
    except OneLine as error:
        error.message = f"{training.name}: {error.message}"
        raise


def _test(training: Training, sizes: tuple[int, ...]) -> None:
    """Test the run's network at `sizes` on the images that its figures are of; keep the result."""
    recipe = training.recipe
    saved = load_model_folder(training.folder, pick_device(recipe.train.device))
    found = find_images(training.folder, saved, root=recipe.data.root)
    options: dict[str, Any] = {"bs": recipe.train.bs, "workers": recipe.data.workers}
    tested = sweep(saved, found.samples, sizes, **options).as_dict()
    about = {"data": found.name, "part": found.part}
    write_json(training.folder / TESTED, {**about, **tested})


def _is_tested(training: Training, sizes: Sequence[int]) -> bool:
    """Whether the run's network was tested at these very sizes."""
    file = training.folder / TESTED
    return file.is_file() and _read(file).get("sizes") == list(sizes)


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error}); remove it") from error


def gathered(lineup: Lineup) -> Standings:
    """What the run folders of `lineup` hold, all of which are trained and tested."""
    by_entry: dict[str, list[Trained]] = {}
    for training in lineup.trainings:
        tested = _read(training.folder / TESTED)
        seconds = _read(training.folder / FINISHED)["train_seconds"]
        run = Trained(training.seed, training.folder, tested, seconds)
        by_entry.setdefault(training.entry, []).append(run)
    ways = tuple(Standing(name, tuple(runs)) for name, runs in by_entry.items())
    return Standings(tested["data"], tested["part"], tested["images"], ways)
