"""Real processes, killed in steps and in the middle of writing, and disks that take no more."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from test_resume import assert_same

from msun_fastai.checkpoints import CheckpointFolder

SCRIPT = Path(__file__).with_name("killed.py")
OPTIONS = {
    # every kind of state: dropout's numbers, momentum, an average, a schedule, worker processes
    "model.method": "mst",
    "data.workers": 2,
    "train.epochs": 3,
    "train.optimizer": "sgd",
    "train.lr": 0.02,
    "train.schedule": "cosine",
    "train.warmup": 1.0,
    "train.ema": 0.9,
}


def command(photos, folder, **values):
    words = [sys.executable, str(SCRIPT), "finetune", "--data", str(photos)]
    for key, value in {**SMALL, **OPTIONS, **values}.items():
        words += ["--set", f"{key}={str(value).lower() if isinstance(value, bool) else value}"]
    return [*words, "--run-dir", str(folder)]


def start(words, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_twenty_kills(photos, tmp_path):
    """15 steps, a checkpoint after each and after each epoch; killed at 20 places on the way."""
    whole = start(command(photos, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    places = [f"step:{n}" for n in (1, 2, 1, 3, 2)]  # counted from where the run goes on
    places += [f"write:{n}" for n in (1, 1, 2, 1, 2)]
    places += [f"written:{n}" for n in (1, 1, 2, 1, 1)]
    places += [f"step:{n}" for n in (1, 1, 1, 1, 1)]
    left = 0
    for place in places:
        run = start(command(photos, tmp_path / "killed"), KILL=place)
        assert run.returncode == -signal.SIGKILL, (place, run.stderr)
        left += len(list((tmp_path / "killed" / "checkpoints").glob(".step-*")))
    assert left == 10
    last = start(command(photos, tmp_path / "killed"))
    assert last.returncode == 0, last.stderr
    assert_same(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_twenty_failed_writes(photos, tmp_path):
    """The disk full from one of the checkpoints on, or the folder not to be written to any more."""
    begun = start(command(photos, tmp_path / "begun"), KILL="step:5")
    assert begun.returncode == -signal.SIGKILL, begun.stderr
    runs = []
    for n in range(1, 16):
        shutil.copytree(tmp_path / "begun", tmp_path / f"full-{n}")
        limit = {"FILE_LIMIT": str(1 + n % 5)}
        runs.append((tmp_path / f"full-{n}", limit, None, "File too large"))
    for n in range(1, 6):
        folder = tmp_path / f"denied-{n}"
        shutil.copytree(tmp_path / "begun", folder)
        runs.append((folder, {"OBEY": "1"}, folder / "checkpoints", "Permission denied"))
    for folder, environment, denied, says in runs:
        if denied is not None:
            denied.chmod(0o555)
        run = start(command(photos, folder), **environment)
        assert run.returncode == 1, (folder.name, run.stderr)
        assert says in run.stderr, run.stderr
        assert "is still there" in run.stderr
        assert len(run.stderr.strip().splitlines()) == 1, run.stderr
        if denied is not None:
            denied.chmod(0o755)
        state, damaged = CheckpointFolder(folder / "checkpoints").newest()
        assert state is not None
        assert damaged == []
        assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_signals_end_the_program(photos, tmp_path, number, code):
    words = command(photos, tmp_path / "run", **{"train.epochs": 500, "data.workers": 1})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=environment, start_new_session=True, **pipes)
    folder = CheckpointFolder(tmp_path / "run" / "checkpoints")
    end = time.monotonic() + 120
    while len(folder.files()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # the loader's processes get it, too
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    how = "terminated" if code == 143 else "interrupted"
    assert error.splitlines() == [
        "msun-fastai: stopping after this step",
        f"msun-fastai: {how}; --resume {tmp_path / 'run'} goes on",
    ]
    state, damaged = folder.newest()
    assert (state["steps"] > 1, damaged) == (True, [])


@pytest.mark.slow
def test_two_processes_go_on_together(photos, tmp_path):
    """Both killed in a step, twice, with batches of mixed scales that are shared out."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "0"]
    options = {"data.workers": 1, "train.views": "native", "model.method": "msun"}
    whole = start([*torchrun, *command(photos, tmp_path / "whole", **options)[1:]])
    assert whole.returncode == 0, whole.stderr
    words = [*torchrun, *command(photos, tmp_path / "killed", **options)[1:]]
    for step in (2, 4):
        killed = start(words, KILL=f"step:{step}")
        assert killed.returncode != 0
    state, _ = CheckpointFolder(tmp_path / "killed" / "checkpoints").newest()
    assert state["steps"] > 2
    last = start(words)
    assert last.returncode == 0, last.stderr
    assert "going on after" in last.stdout
    assert last.stdout.count("run folder") == whole.stdout.count("run folder")
    assert_same(tmp_path / "killed", tmp_path / "whole")
