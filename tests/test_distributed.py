"""Two processes train what one would with batches of both; where one dies the other ends too."""

import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import ranks
import torch
from fastai.learner import Metric
from torch import nn

from msun_fastai import processes
from msun_fastai.callbacks.distributed import (
    BATCH_NORMS,
    DistributedTraining,
    sync_batch_norms,
)
from msun_fastai.errors import UserError

RANKS = Path(ranks.__file__)
TOGETHER = ("all", "native", "frozen", "ensemble", "san", "aligned", "batch-norm")
ALONE = TOGETHER[:-1]  # what batch norm decides is not the same in one process
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(*words, **variables):
    given = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.Popen(command, env=given, stderr=subprocess.PIPE, text=True)


def finish(process, seconds):
    """What it said until it ended; `torchrun` takes its processes with it."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.terminate()
        raise


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What each process of two, and one alone, ended with, by case, number and how many."""
    folder = tmp_path_factory.mktemp("ranks")
    process = start(*TORCHRUN, RANKS, folder, *TOGETHER)
    said = finish(process, 200)
    assert process.returncode == 0, said
    with warnings.catch_warnings():
        ranks.main(folder, *ALONE)
    return lambda case, rank, world: torch.load(folder / f"{case}-{rank}-{world}.pt")


def assert_near(a, b, most):
    for name, value in a.items():
        assert (value.double() - b[name].double()).abs().max() <= most, name


@pytest.mark.parametrize("case", TOGETHER)
def test_two_processes_end_with_the_same(trained, case):
    a, b = trained(case, 0, 2), trained(case, 1, 2)
    assert_near(a["weights"], b["weights"], 0)
    assert not any("module" in name for name in a["weights"])
    assert a["names"] == b["names"]
    assert a["values"] == b["values"]
    assert a["validated"] == b["validated"] == a["values"][-1][1 : 1 + len(a["validated"])]
    assert len(a["shares"]) == len(b["shares"])


@pytest.mark.parametrize("case", ALONE)
def test_and_with_what_one_process_ends_with(trained, case):
    both, alone = trained(case, 0, 2), trained(case, 0, 1)
    assert_near(both["weights"], alone["weights"], 1e-5)
    assert both["names"] == alone["names"]
    for row, other in zip(both["values"], alone["values"]):
        assert row == pytest.approx(other, abs=1e-5)
    assert both["validated"] == pytest.approx(alone["validated"], abs=1e-5)
    terms = {"native": 0, "aligned": 0, "ensemble": 2}  # elsewhere one that ties the views together
    assert len(both["values"][0]) == 7 + terms.get(case, 1)
    if case == "ensemble":
        assert both["weights"]["ensemble.weight"].abs().max() > 1e-4


def test_what_one_process_knows_to_be_bad_is_left_out_by_all(trained):
    for rank, world in ((0, 1), (0, 2), (1, 2)):
        assert trained("frozen", rank, world)["bad"] == [(5, "an image that cannot be read")]


def test_shares_that_are_not_equal_were_among_them(trained):
    a, b = (trained("native", rank, 2)["shares"] for rank in (0, 1))
    assert {x + y for x, y in zip(a, b)} == {2.0}
    assert any(x != 1 for x in a)


@pytest.mark.slow
def test_where_one_is_killed_the_other_ends_with_an_error(tmp_path):
    """Without `torchrun`, which would end it."""
    joined = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [start(RANKS, tmp_path, "killed", RANK=str(k), **joined) for k in (0, 1)]
    finish(both[1], 120)
    died = time.monotonic()
    assert both[1].returncode == -9
    said = finish(both[0], 60)
    assert both[0].returncode not in (0, -9)
    assert time.monotonic() - died < 60
    assert "gone" in said or "Connection" in said
    assert not list(tmp_path.iterdir())


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("gone", ["silent", "store"])
def test_a_silent_process_is_noticed(monkeypatch, gone, capsys):
    """However it waits: NCCL does not notice that a process is gone."""
    for name, value in {"BEAT": 0.01, "SILENT": 0.3, "GRACE": 0.01}.items():
        monkeypatch.setattr(processes, name, value)
    ended = []
    monkeypatch.setattr(processes.os, "_exit", lambda code: ended.append(time.monotonic()))
    store = torch.distributed.HashStore()
    watches = [processes._Watch(store, rank, 2) for rank in (0, 1)]
    time.sleep(0.6)
    assert ended == []
    if gone == "silent":
        watches[1].end()
    else:
        monkeypatch.setattr(watches[0], "store", Broken())
    watches[0].join(5)
    assert len(ended) == 1
    watches[1].end()
    assert "is gone" in capsys.readouterr().err


class Broken:
    def add(self, key, amount):
        raise torch.distributed.DistNetworkError("closed")


def test_alone_there_is_nothing_to_do(make_learner, monkeypatch):
    assert processes.world() == 1
    assert processes.is_main()
    assert processes.agree([3, 4]) == [3, 4]
    assert processes.gathered("a") == ["a"]
    processes.barrier()
    with processes.joined_processes():
        learn = make_learner(cbs=DistributedTraining())
        learn.fit(1, 1e-3)
        assert learn.recorder.values[0][0] > 0
    monkeypatch.setenv("RANK", "1")
    assert not processes.is_main()


def test_processes_that_cannot_be_joined(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(UserError, match=r"2 processes could not be joined: .*MASTER_ADDR"),
        processes.joined_processes("cpu"),
    ):
        pass
    with (
        pytest.raises(UserError, match="compute on cuda or cpu"),
        processes.joined_processes("mps"),
    ):
        pass
    monkeypatch.setenv("LOCAL_RANK", "1000")
    with (
        pytest.raises(UserError, match="process 1000 of this machine has no GPU"),
        processes.joined_processes("cuda"),
    ):
        pass


def test_a_metric_that_cannot_be_added_up_is_refused(make_learner, monkeypatch):
    class Last(Metric):
        value = 1.0

    learn = make_learner(metrics=Last(), cbs=DistributedTraining())
    monkeypatch.setattr("msun_fastai.callbacks.distributed.world", lambda: 2)
    with pytest.raises(UserError, match="metric last: Last cannot be put together"):
        learn.fit(1)
    learn = make_learner(cbs=DistributedTraining())
    learn.dls.train.world = 3
    with pytest.raises(UserError, match="loaders for 3 processes where there are 2"):
        learn.fit(1)


def test_batch_norms_are_put_back():
    class Activated(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(Activated(4)))
    before = dict(model.state_dict())
    plain = sync_batch_norms(model)
    assert [type(m).__name__ for m in model.modules()].count("SyncBatchNorm") == 2
    assert model.state_dict().keys() == before.keys()
    assert all(v.data_ptr() == before[k].data_ptr() for k, v in model.state_dict().items())
    for parent, name, norm in plain:
        setattr(parent, name, norm)
    assert sum(isinstance(m, BATCH_NORMS) for m in model.modules()) == 2
    model[1].requires_grad_(False)  # a frozen one stays
    assert [norm for _, _, norm in sync_batch_norms(model)] == [plain[1][2]]
