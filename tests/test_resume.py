"""A run that is stopped, however that was, goes on as if it had not been: the same weights."""

import csv
import errno
import json
import os
import signal

import pytest
import torch
from rich.console import Console

from msun_fastai import run as runs
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.checkpoints import CheckpointFolder, read_checkpoint
from msun_fastai.data.native_dl import NativeDL
from msun_fastai.errors import Stopped, TrainingError, UserError
from msun_fastai.models.backbones import Family
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.runfolder import check_same_processes, unfinished_recipe

# 5 batches an epoch; what differs between them is what a checkpoint has to hold
KINDS = {
    "one cycle, sizes between the scales": {"train.reduced": 0.5},
    "cosine, sgd, native views, averaged": {
        "train.schedule": "cosine",
        "train.warmup": 0.5,
        "train.optimizer": "sgd",
        "train.lr": 0.05,
        "train.views": "native",
        "train.ema": 0.9,
        "train.clip": 1.0,
    },
    "steps within an epoch and at its end, random sizes, dropout": {
        "model.method": "mst",
        "train.schedule": "step",
        "train.warmup": 0.5,
        "train.milestones": [0.8, 1.0],
    },
    "two phases, random sizes": {
        "model.weights": "weights.safetensors",
        "train.epochs": 1,
        "model.method": "mst",
        "train.save_minutes": 60.0,
    },
    "two phases": {"model.weights": "weights.safetensors", "train.epochs": 1},
    "aligned first, averaged": {
        "model.weights": "weights.safetensors",
        "model.alignment": "native",
        "train.align": 1,
        "train.epochs": 1,
        "train.ema": 0.9,
    },
}


class Killed(BaseException):
    """What stands in for the end of the process."""


@pytest.fixture
def kill():
    """A function that lets the training end in the middle of its n-th step."""

    def at(patched, number):
        steps = iter(range(1, 1000))
        real = TrainingStep._gradients

        def one(self, xb, yb, size):
            real(self, xb, yb, size)
            if next(steps) == number:
                raise Killed

        patched.setattr(TrainingStep, "_gradients", one)

    return at


def train(recipe, folder):
    return runs.run(recipe, Console(quiet=True), folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A function that gives the run of a recipe from start to end, trained once for all tests; how
    often it saves is left out of account, for nothing may depend on it."""
    runs_by_recipe = {}

    def of(recipe):
        key = recipe.with_values({"train.save_minutes": 60.0}, "test").to_toml()
        if key not in runs_by_recipe:
            runs_by_recipe[key] = train(recipe, tmp_path_factory.mktemp("whole") / "run")
        return runs_by_recipe[key]

    return of


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def history(folder):
    rows = list(csv.DictReader((folder / "history.csv").open()))
    return [{k: v for k, v in row.items() if k != "time"} for row in rows]


def assert_same(one, other):
    """Both runs have the same weights, bit by bit, and the same history."""
    assert history(one) == history(other)
    assert weights(one) == weights(other)


def add_dropout(patched):
    """Let the thin network draw random numbers in training."""
    real = Family.build

    def build(self, arch, n_classes):
        net = real(self, arch, n_classes)
        net.layer4 = torch.nn.Sequential(*net.layer4, torch.nn.Dropout(0.3))
        return net

    patched.setattr(Family, "build", build)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_in_a_step(kill, monkeypatch, recipe_of, tmp_path, kind):
    recipe = recipe_of(**KINDS[kind])
    if "dropout" in kind:
        add_dropout(monkeypatch)
    whole = train(recipe, tmp_path / "whole")
    same = {k: v for k, v in whole.metrics.items() if k != "train_seconds"}
    for step in (4, 6):
        killed = tmp_path / f"killed-{step}"
        with monkeypatch.context() as killing:
            kill(killing, step)
            with pytest.raises(Killed):
                train(recipe, killed)
        again = train(recipe, killed)
        assert_same(killed, whole.folder)
        assert {k: v for k, v in again.metrics.items() if k != "train_seconds"} == same


def test_killed_again_and_again(kill, monkeypatch, recipe_of, tmp_path):
    recipe = recipe_of(**{"train.save_minutes": 60.0, **KINDS["two phases"]})
    train(recipe, tmp_path / "whole")
    for step in (4, 3, 2, 6, 5):  # counted from where each goes on
        with monkeypatch.context() as killing:
            kill(killing, step)
            with pytest.raises(Killed):
                train(recipe, tmp_path / "killed")
    train(recipe, tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")


def test_with_worker_processes(kill, monkeypatch, recipe_of, tmp_path):
    recipe = recipe_of(**{"data.workers": 2, **KINDS["cosine, sgd, native views, averaged"]})
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as killing:
        kill(killing, 5)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed")
    train(recipe, tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_within_a_step(monkeypatch, recipe_of, whole, tmp_path, where, number):
    recipe = recipe_of(**{"train.save_minutes": 60.0})
    seen = iter(range(100))
    real = TrainingStep.do_one_batch

    def signalled(self):
        if self.learn.training == (where == "training") and next(seen) == 2:
            os.kill(os.getpid(), number)
        real(self)

    with monkeypatch.context() as sending:
        sending.setattr(TrainingStep, "do_one_batch", signalled)
        with pytest.raises(Stopped) as stopped:
            train(recipe, tmp_path / "stopped")
    assert stopped.value.signal == number
    state, damaged = CheckpointFolder(tmp_path / "stopped" / "checkpoints").newest()
    steps = 3 if where == "training" else 5  # of validation it is the third batch of an epoch
    assert (state["steps"], damaged) == (steps, [])
    train(recipe, tmp_path / "stopped")
    assert_same(tmp_path / "stopped", whole(recipe).folder)


@pytest.mark.parametrize(
    "left",
    [
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated."),
        EOFError(),  # in the middle of a batch: the socket that hands over its memory is closed,
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),  # or its name is gone
    ],
    ids=lambda error: type(error).__name__,
)
def test_loader_that_goes_with_the_signal(monkeypatch, recipe_of, whole, tmp_path, left):
    """Slurm signals the workers of the loader, too; the main process finds them gone."""
    recipe = recipe_of(**{"train.save_minutes": 60.0})
    real = NativeDL._made
    calls = iter(range(1000))

    def gone(self, i):
        if next(calls) == 20:
            os.kill(os.getpid(), signal.SIGTERM)
            raise left
        return real(self, i)

    with monkeypatch.context() as sending:
        sending.setattr(NativeDL, "_made", gone)
        with pytest.raises(Stopped):
            train(recipe, tmp_path / "stopped")
    state, _ = CheckpointFolder(tmp_path / "stopped" / "checkpoints").newest()
    assert state["steps"] == 2
    train(recipe, tmp_path / "stopped")
    assert_same(tmp_path / "stopped", whole(recipe).folder)


@pytest.mark.parametrize("write", [1, 2, 4])
def test_failed_writes(monkeypatch, recipe_of, tmp_path, write):
    """A disk that is full, and a folder that may not be written to: 1 and 2, and so on."""
    recipe = recipe_of()
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    real, written = os.fsync, iter(range(1, 1000))

    def fails(fd):
        if "step-" in os.readlink(f"/proc/self/fd/{fd}") and next(written) == write:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fails)
        with pytest.raises(TrainingError, match="No space left") as e:
            train(recipe, tmp_path / "run")
    state, damaged = folder.newest()
    assert (state["steps"] if state else 0, damaged) == (write - 1, [])
    assert not list(folder.path.glob(".*"))
    if write > 1:
        assert f"step-{write - 1:08d}.ckpt is still there" in str(e.value)


def test_damaged_checkpoints_are_passed_over(kill, monkeypatch, recipe_of, whole, tmp_path, capsys):
    recipe = recipe_of()
    with monkeypatch.context() as killing:
        kill(killing, 5)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed")
    newest, before = CheckpointFolder(tmp_path / "killed" / "checkpoints").files()
    assert (newest.name, before.name) == ("step-00000004.ckpt", "step-00000003.ckpt")
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(newest)
    runs.run(recipe, Console(width=500), tmp_path / "killed")
    told = capsys.readouterr().out
    assert "step-00000004.ckpt: damaged" in told
    assert "going on after 3 steps" in told
    assert_same(tmp_path / "killed", whole(recipe).folder)


def test_checkpoints_run_no_code(tmp_path):
    folder = CheckpointFolder(tmp_path)

    class Hostile:
        def __reduce__(self):
            return (os.system, ("touch " + str(tmp_path / "ran"),))

    file = folder.write(1, {"model": Hostile()})
    with pytest.raises(UserError, match="damaged"):
        read_checkpoint(file)
    assert not (tmp_path / "ran").exists()


def test_loss_that_is_not_finite(monkeypatch, recipe_of, whole, tmp_path):
    recipe = recipe_of()
    real = MultiScaleNet.classify
    calls = iter(range(1000))

    def broken(self, features, i):
        logits = real(self, features, i)
        if self.training and next(calls) == 3:  # the fourth step, all views in one
            third = len(logits) // 3
            logits = torch.cat(
                [logits[:third], logits[third : 2 * third] * torch.nan, logits[2 * third :]]
            )
        return logits

    with monkeypatch.context() as breaking:
        breaking.setattr(MultiScaleNet, "classify", broken)
        with pytest.raises(TrainingError) as error:
            train(recipe, tmp_path / "run")
    assert "step 4 (epoch 1, batch 4), scale 24;" in str(error.value)
    state, _ = CheckpointFolder(tmp_path / "run" / "checkpoints").newest()
    assert state["steps"] == 3
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    train(recipe, tmp_path / "run")
    assert_same(tmp_path / "run", whole(recipe).folder)


def test_whose_run_it_is(kill, monkeypatch, recipe_of, tmp_path):
    with monkeypatch.context() as killing:
        kill(killing, 2)
        with pytest.raises(Killed):
            train(recipe_of(), tmp_path / "run")
    with pytest.raises(UserError, match=r"has train.lr = 0.002, not 0.1; go on with --resume"):
        train(recipe_of(**{"train.lr": 0.1}), tmp_path / "run")
    assert unfinished_recipe(tmp_path / "run").train.lr == 0.002
    train(recipe_of(**{"train.save_minutes": 30.0}), tmp_path / "run")
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert len(environment["resumed"]) == 1
    with pytest.raises(UserError, match="its run is finished"):
        train(recipe_of(), tmp_path / "run")
    with pytest.raises(UserError, match="is over; there is nothing to go on with"):
        unfinished_recipe(tmp_path / "run")
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="there is no run to go on with"):
        unfinished_recipe(tmp_path / "other")
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty"):
        train(recipe_of(), tmp_path / "other")


@pytest.mark.slow
def test_baseline_goes_on_too(kill, monkeypatch, recipe_of, tmp_path):
    recipe = recipe_of(baseline="vanilla")
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as killing:
        kill(killing, 13)  # ten steps are msun's
        with pytest.raises(Killed):
            train(recipe, tmp_path / "killed")
    train(recipe, tmp_path / "killed")
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert_same(tmp_path / "killed" / "baseline", tmp_path / "whole" / "baseline")


def test_last_two_are_kept(recipe_of, tmp_path):
    train(recipe_of(), tmp_path / "run")
    names = [f.name for f in CheckpointFolder(tmp_path / "run" / "checkpoints").files()]
    assert names == ["step-00000010.ckpt", "step-00000009.ckpt"]


def test_damaged_files_count_for_nothing(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in (9, 10):
        file = folder.write(step, {"steps": step})
        file.write_bytes(file.read_bytes()[:-1])
    state, told = folder.newest()
    assert state is None
    assert "starts from the beginning" in told[-1]
    for step in (1, 2, 3):
        folder.write(step, {"steps": step})
    assert [f.name for f in folder.files()] == ["step-00000003.ckpt", "step-00000002.ckpt"]
    assert folder.newest() == ({"steps": 3}, [])
    assert len(list(tmp_path.glob("*.damaged"))) == 2


def test_number_of_processes_stays(kill, monkeypatch, recipe_of, tmp_path):
    with monkeypatch.context() as killing:
        kill(killing, 2)
        with pytest.raises(Killed):
            train(recipe_of(), tmp_path / "run")
    with pytest.raises(UserError, match="begun with 1 processes, and goes on with as many"):
        check_same_processes(tmp_path / "run", 2)


def test_stopped_run_says_how_to_go_on(monkeypatch, recipe_of, tmp_path, capfd):
    real = TrainingStep.do_one_batch

    def signalled(self):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # as a launcher does that signals a whole group
        real(self)

    with monkeypatch.context() as sending:
        sending.setattr(TrainingStep, "do_one_batch", signalled)
        with pytest.raises(Stopped, match=f"terminated; --resume {tmp_path / 'run'} goes on"):
            train(recipe_of(), tmp_path / "run")
    assert capfd.readouterr().err.count("stopping after this step") == 1


def test_batches_keep_their_numbers(kill, monkeypatch, recipe_of, tmp_path):
    """What is told of a batch, and a process's share of it, is by its place in the epoch."""
    with monkeypatch.context() as killing:
        kill(killing, 4)
        with pytest.raises(Killed):
            train(recipe_of(), tmp_path / "run")
    real, seen = TrainingStep._gradients, []

    def noted(self, xb, yb, size):
        seen.append((self.learn.epoch, self.learn.iter, self.learn.train_iter))
        real(self, xb, yb, size)

    monkeypatch.setattr(TrainingStep, "_gradients", noted)
    train(recipe_of(), tmp_path / "run")
    assert seen[:3] == [(0, 3, 3), (0, 4, 4), (1, 0, 5)]
