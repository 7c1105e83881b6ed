"""Processes beside each other: what they say, how they fail, and that none is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from msun_fastai.errors import Stopped, TrainingError, UserError
from msun_fastai.jobs import Job, side_by_side
from msun_fastai.stopping import stop_on_signals


def speak(said, *words):
    for word in words:
        print(word, file=said)


def fail(said, error):
    raise error


def die(said):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_stop(said, folder):
    """Until somebody asks, as a training does between two steps; a file says that it began, and
    one that it was asked."""
    own = Path(folder) / str(os.getpid())
    with stop_on_signals() as stop:
        own.touch()
        print("begun", file=said)
        for _ in range(1000):
            time.sleep(0.02)
            if stop.signal:
                own.with_suffix(".asked").touch()
            stop.check()


def alive(pid):
    """Whether the process runs; one that nobody has asked for its exit code does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_each_line_is_told_with_its_name():
    told = []
    jobs = [Job(name, speak, (f"{name}1", f"{name}2")) for name in "abc"]
    side_by_side(jobs, 2, lambda *line: told.append(line))
    for name in "abc":
        assert [line for of, line in told if of == name] == [f"{name}1", f"{name}2"]
    assert len(told) == 6


@pytest.mark.parametrize(
    ("work", "given", "kind", "says"),
    [
        (fail, (UserError("bad input"),), UserError, "^bad input$"),
        (fail, (TrainingError("no luck"),), TrainingError, "^no luck$"),
        (fail, (KeyError("odd"),), TrainingError, "^KeyError: 'odd'$"),
        (die, (), TrainingError, "signal 9; memory may have been short"),
    ],
)
def test_the_first_error_ends_the_others(tmp_path, work, given, kind, says):
    begun = []
    jobs = [
        Job("waits", wait_for_stop, (str(tmp_path),)),
        Job("fails", work, given),
        Job("never", speak, ("x",)),
    ]
    with pytest.raises(kind, match=says):
        side_by_side(jobs, 2, lambda name, line: begun.append(name))
    assert "never" not in begun
    pids = [int(p.name) for p in tmp_path.iterdir() if not p.suffix]
    assert len(list(tmp_path.glob("*.asked"))) == len(pids)  # where it had begun
    assert not any(map(alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_of_them(tmp_path, number, capfd):
    begun = []

    def said(name, line):
        begun.append(name)
        if len(begun) == 2:
            os.kill(os.getpid(), number)

    jobs = [Job(name, wait_for_stop, (str(tmp_path),)) for name in "abc"]
    with pytest.raises(Stopped) as stopped:
        side_by_side(jobs, 2, said)
    assert stopped.value.signal == number
    assert sorted(begun) == ["a", "b"]
    pids = [int(p.name) for p in tmp_path.iterdir() if not p.suffix]
    assert len(pids) == len(list(tmp_path.glob("*.asked"))) == 2
    assert not any(map(alive, pids))
    assert capfd.readouterr().err == "msun-fastai: stopping after this step\n"


def test_none_outlives_a_parent_that_is_killed(tmp_path):
    code = (
        "from msun_fastai.jobs import Job, side_by_side; import test_jobs\n"
        "if __name__ == '__main__':\n"
        f"    jobs = [Job(n, test_jobs.wait_for_stop, ({str(tmp_path)!r},)) for n in 'ab']\n"
        "    side_by_side(jobs, 2, print)\n"
    )
    tests = Path(__file__).parent
    places = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": places},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    pids = [int(p.name) for p in tmp_path.iterdir()]
    assert len(pids) == 2
    assert all(map(alive, pids))
    parent.kill()
    parent.wait()
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    assert len(list(tmp_path.glob("*.asked"))) == 2
