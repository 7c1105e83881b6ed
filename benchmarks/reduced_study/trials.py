"""One training of the study: its recipe, its run folder, and what its network is tested on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from rich.console import Console

from msun_fastai.answers import OWN
from msun_fastai.choices import check_choices, method_recipe, resolved
from msun_fastai.devices import pick_device
from msun_fastai.errors import OneLine, UserError
from msun_fastai.evaluate import sweep
from msun_fastai.files import write_json
from msun_fastai.fits import fitted_to_sizes
from msun_fastai.jobs import Job, side_by_side
from msun_fastai.labelled import find_images
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.saving import SavedModel, load_model_folder
from msun_fastai.recipe import Recipe, load_recipe
from msun_fastai.routed import Routed
from msun_fastai.routing import ask_every_subnet, calibrated_rule
from msun_fastai.run import run
from msun_fastai.runfolder import FINISHED, is_unfinished, other_value
from msun_fastai.scales import sweep_sizes

HERE = Path(__file__).parent
TESTED = "study.json"  # in a run's folder
SCALES = (16, 32, 64)
SIZES = sweep_sizes(SCALES[0], SCALES[-1])  # 16 to 64 in steps of 4
PARTS = ("valid", "test")  # to choose on, and to report on
RULES = ("nearest", "up", "calibrated")
WIDE = 1000  # columns of what another process prints


@dataclass(frozen=True)
class Trial:
    """One way to train. name: in tables, and its folder's. values: of a recipe, by dotted keys, on
    top of the study's and of what is the method's own.

    seeds: 1, or 3 where a claim depends on it. start: the trial whose network it goes on from, of
    the same seed; weights: the one whose network's weights it takes. rules: all its subnets are
    asked at every size, so that routing rules can be tried. own_sizes: it is tested with images at
    their own sizes, too; by_size: with batch norms fitted to every size.
    """

    name: str
    method: str
    values: dict[str, Any] = field(default_factory=dict)
    seeds: int = 1
    start: str | None = None
    weights: str | None = None
    verb: str = "pretrain"
    rules: bool = False
    own_sizes: bool = False
    by_size: bool = False

    @property
    def parent(self) -> str | None:
        """The trial that has to be over before."""
        return self.start or self.weights

    @property
    def elsewhere(self) -> bool:
        """Whether it is trained on another dataset than the study's own."""
        return "data.dataset" in self.values


@dataclass(frozen=True)
class Place:
    """Where a study is run. size: `micro` or `full`. folder: of the run folders."""

    size: str
    root: str
    folder: Path
    jobs: int = 2
    device: str | None = None

    def run_folder(self, name: str, seed: int) -> Path:
        """The run folder of a trial's training."""
        plain = "".join(c if c.isalnum() or c in "+.-" else "_" for c in name)
        return self.folder / plain / f"seed-{seed}"


@dataclass(frozen=True)
class Training:
    """A trial with a seed, as it is run."""

    trial: Trial
    seed: int
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """What it is called in what is printed."""
        return f"{self.trial.name} seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether it is trained, and tested in all that its trial asks for."""
        file, trial = self.folder / TESTED, self.trial
        if not file.is_file():
            return False
        asked = {"by_size": trial.by_size, "rules": trial.rules, "native": trial.own_sizes}
        found = json.loads(file.read_text(encoding="utf-8"))
        return trial.elsewhere or all(
            name in found.get(part, {}) for name, of in asked.items() if of for part in PARTS
        )


def study_recipe(place: Place) -> Recipe:
    """What all trainings of a study have in common."""
    base = load_recipe(str(HERE / f"{place.size}.toml"))
    values: dict[str, Any] = {"data.root": place.root}
    if place.device is not None:
        values["train.device"] = place.device
    return base.with_values(values, place.size)


def trial_recipe(place: Place, trial: Trial, seed: int) -> Recipe:
    """The recipe of a trial's training. Raises `UserError` for what is wrong with it."""
    base = study_recipe(place)
    recipe = method_recipe(base, trial.method)
    values: dict[str, Any] = {"verb": trial.verb, "train.seed": seed}
    if trial.start is not None:
        values["model.start"] = str(place.run_folder(trial.start, seed))
    if trial.weights is not None:
        values["model.weights"] = str(place.run_folder(trial.weights, seed))
    return recipe.with_values({**values, **trial.values}, trial.name)


def plan(place: Place, trials: Sequence[Trial], seeds: int | None = None) -> list[list[Training]]:
    """The trainings of `trials`, in waves: a wave needs those before it. seeds: of each, instead of
    its own number. Raises `UserError` for values that no recipe has.
    """
    known = {trial.name: trial for trial in trials}
    waves: list[list[Training]] = []
    first = study_recipe(place).train.seed
    for trial in trials:
        depth, above = 0, trial
        while above.parent is not None:
            depth, above = depth + 1, known[above.parent]
        waves += [[] for _ in range(depth + 1 - len(waves))]
        for seed in range(first, first + (seeds or trial.seeds)):
            recipe = trial_recipe(place, trial, seed)
            waves[depth].append(Training(trial, seed, recipe, place.run_folder(trial.name, seed)))
    return [sorted(wave, key=lambda t: t.seed) for wave in waves]  # a seed of all is a study


def train(place: Place, waves: Sequence[Sequence[Training]], console: Console) -> None:
    """Train and test what is not yet there; what was stopped goes on.

    Raises `UserError` where a run folder holds another run.
    """
    for wave in waves:
        todo = [training for training in wave if not training.done]
        for training in todo:
            _check(training)
        if todo:
            console.print(f"{len(todo)} to do, {len(wave) - len(todo)} there", highlight=False)
        threads = max(1, torch.get_num_threads() // place.jobs)
        work = [Job(t.name, _in_process, (t, threads)) for t in todo]
        if work:
            side_by_side(
                work,
                place.jobs,
                lambda name, line: console.print(
                    f"{name}: {line}", highlight=False, soft_wrap=True, markup=False
                ),
            )


def _check(training: Training) -> None:
    """Raise `UserError` for a recipe that cannot be run, or a folder that holds something else."""
    try:
        check_choices(training.recipe, None)
    except UserError as error:
        raise UserError(f"{training.name}: {error.message}") from None
    folder = training.folder
    if (folder / FINISHED).is_file() or is_unfinished(folder):
        apart = other_value(folder, resolved(training.recipe))
        if apart is not None:
            raise UserError(f"{folder}: its run has {apart}; remove it, or name another --runs")


def _in_process(said: TextIO, training: Training, threads: int) -> None:
    keep_freed_memory()
    torch.set_num_threads(threads)
    console = Console(file=said, width=WIDE)
    try:
        if not (training.folder / FINISHED).is_file():
            run(training.recipe, console, training.folder)
        write_json(training.folder / TESTED, tested(training))
    except OneLine as error:
        error.message = f"{training.name}: {error.message}"
        raise


def tested(training: Training) -> dict[str, Any]:
    """What the network of a training answers, on the part to choose on and the part to report on.

    Of each part: `routed`, the sweep over the sizes as `Sweep.as_dict` has it; where the trial asks
    for it `rules`, the accuracy and cost of each routing rule at the sizes, with thresholds fitted
    on the part to choose on, and `subnets`, the accuracy of each at every size; `native` and
    `ideal`, sweeps at the sizes themselves; `by_size`, with batch norms for every size. A network
    that was brought to another dataset is tested at the images' own sizes alone, as its run is.
    """
    trial, folder, recipe = training.trial, training.folder, training.recipe
    metrics = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    found: dict[str, Any] = {"seconds": metrics["train_seconds"], "metrics": metrics}
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    found |= {name: environment[name] for name in ("commit", "device", "threads")}
    if trial.elsewhere:
        return found
    saved = load_model_folder(folder, pick_device(recipe.train.device))
    options: dict[str, Any] = {"bs": recipe.train.bs, "workers": recipe.data.workers}
    thresholds = None
    fitted = _by_size(training, saved) if trial.by_size else None
    for part in PARTS:
        samples = find_images(folder, saved, root=recipe.data.root, part=part).samples
        told: dict[str, Any] = {"routed": sweep(saved, samples, SIZES, **options).as_dict()}
        if trial.own_sizes:
            for resize in ("native", "ideal"):
                told[resize] = sweep(saved, samples, SIZES, resize=resize, **options).as_dict()
        if fitted is not None:
            told["by_size"] = sweep(fitted, samples, SIZES, **options).as_dict()
        if trial.rules:
            asked = ask_every_subnet(saved, samples, SIZES, **options)
            thresholds = thresholds or calibrated_rule(asked)
            told["rules"] = {
                rule: _under(asked, thresholds if rule == "calibrated" else rule) for rule in RULES
            }
            told["subnets"] = {str(s): _shares(asked, asked.answers.right(OWN, s)) for s in SCALES}
        found[part] = told
    return found


def _under(asked: Routed, rule: str) -> dict[str, Any]:
    routed = asked.under(rule)
    about = {"rule": rule, "accuracy": _shares(asked, routed.right)}
    return {**about, "mean_accuracy": routed.accuracy, "mean_macs": routed.mean_macs}


def _by_size(training: Training, saved: SavedModel) -> SavedModel:
    """The network with batch norms of its own for every size."""
    found = find_images(training.folder, saved, root=training.recipe.data.root, part="train")
    return fitted_to_sizes(saved, found.samples, SIZES, training.recipe)[0]


def _shares(asked: Routed, right: np.ndarray) -> list[float]:
    """The share of right answers at each of the sizes."""
    return [float(right[asked.answers.native == size].mean()) for size in SIZES]
