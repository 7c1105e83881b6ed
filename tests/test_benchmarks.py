"""The benchmark of all methods: that it does what training and evaluation do, and tells memory."""

import json
import mmap
import sys

import pytest
import torch
from conftest import ROOT, SCALES

of_linux = pytest.mark.skipif(sys.platform != "linux", reason="no other system tells the peak")


@pytest.fixture
def methods(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import methods

    # the tests' own process keeps no memory that was freed
    monkeypatch.setattr(methods, "keep_freed_memory", lambda: False)
    return methods


@pytest.fixture
def given(methods):
    return methods.Given("thin_resnet10", SCALES, 2, "cpu")


def test_every_method_is_measured_at_every_scale(methods):
    for network, (name, _) in methods.NETWORKS.items():
        works = methods.works(network, SCALES)
        of = {
            kind: [w.scale for w in works if w.kind == kind] for kind in ("inference", "training")
        }
        assert of["inference"] == list(SCALES)
        # what brings every image to one scale trains on that one alone
        alone = [] if name in ("vanilla", "mst") else list(SCALES)
        assert of["training"] == [*alone, None]


def trained_once(methods, given, network, scale):
    """What was opened, after one training step, and the sides of the views that went through."""
    with methods.opened(methods.Work(network, "training", scale), given) as ready:
        seen = []
        ready.network.register_forward_pre_hook(
            lambda net, views: seen.extend(view.shape[-1] for view in views)
        )
        before = [p.clone() for p in ready.network.parameters()]
        ready.task()
        after = list(ready.network.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after))
    return ready, seen


def test_a_training_step_is_a_runs_own(methods, given):
    every, seen = trained_once(methods, given, "san", None)
    assert seen == list(SCALES)
    assert every.consistency == "sd"
    alone, seen = trained_once(methods, given, "san", SCALES[0])
    assert seen == [SCALES[0]]
    assert alone.consistency == "none"
    assert alone.macs < every.macs / 5


def test_times_and_costs_are_over_the_plain_networks(methods, given):
    units = {k: methods.plain(k, SCALES[-1], given) for k in ("inference", "training")}
    for kind, unit in units.items():
        row = methods.time_of(methods.Work("vanilla", kind, SCALES[-1]), unit, given, rounds=2)
        assert row["macs_ratio"] == 1
        assert len(row["time_ratios"]) == 2
        assert min(row["time_ratios"]) > 0
        assert row["time_over_macs"] == row["time_ratio"]
    row = methods.time_of(methods.Work("san", "inference", 32), units["inference"], given, rounds=1)
    assert row["macs_ratio"] == pytest.approx(1 / 4, abs=0.01)  # its own side, strides kept
    assert units["training"].macs == 3 * units["inference"].macs


@of_linux
def test_the_peak_is_of_what_was_freed_too_and_can_be_forgotten(methods):
    size = 100 * methods.MIB
    before = methods.held_memory("cpu", "VmRSS")
    methods.reset_peak("cpu")
    with mmap.mmap(-1, size) as pages:  # not from what malloc may keep of earlier tests
        for _ in range(100):
            pages.write(b"1" * methods.MIB)
    assert methods.held_memory("cpu", "VmHWM") - before > 0.9 * size
    methods.reset_peak("cpu")
    assert methods.held_memory("cpu", "VmHWM") - before < 0.5 * size


@of_linux
def test_memory_holds_what_a_step_keeps(methods, given):
    few = methods.memory_of(methods.Work("vanilla", "training", None), given)
    many = methods.memory_of(
        methods.Work("vanilla", "training", None), methods.replace(given, bs=64)
    )
    assert many["kept_mib"] > 20 * few["kept_mib"] > 0
    grown = many["kept_mib"] - few["kept_mib"]
    assert many["memory_mib"] - few["memory_mib"] > 0.5 * grown


@pytest.mark.slow
def test_the_benchmark_prints_and_writes(methods, tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.json"
    words = "--arch thin_resnet10 --scales 16,32,64 --bs 2 --rounds 1 --out"
    monkeypatch.setattr(sys, "argv", ["methods.py", *words.split(), str(file)])
    methods.main()
    rows = json.loads(file.read_text())["rows"]
    assert {row["network"] for row in rows} == {"plain", *methods.NETWORKS}
    assert all(row["memory_mib"] > 0 for row in rows)
    printed = capsys.readouterr().out
    assert all(name in printed for name in methods.NETWORKS)
