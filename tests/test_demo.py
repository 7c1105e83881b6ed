"""The demo's promise, measured: good at every scale, far above one scale at the smallest."""

import json
import time

import pytest

from msun_fastai.cli import main


@pytest.mark.slow
def test_demo_keeps_its_promise(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.time()
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "--recipe", "demo", "--json", "m.json"])
    assert ended.value.code == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    at = dict(zip(metrics["sizes"], metrics["accuracy"]))
    baseline = dict(zip(metrics["baseline"]["sizes"], metrics["baseline"]["accuracy"]))
    assert all(at[scale] >= 0.85 for scale in metrics["scales"])
    assert at[16] - baseline[16] >= 0.10
    assert time.time() - started < 600
