"""The paper's schedule against a table computed by hand, and its optimizer against torch's."""

import json

import pytest
import torch
from fastai.callback.schedule import ParamScheduler

from msun_fastai.errors import UserError
from msun_fastai.schedules import make_optimizer, warmup_cosine

# 90 epochs at 0.1, five of warm-up from 0.001, down to 0.001: epoch and rate, by hand
TABLE = {
    0: 0.001,
    1: 0.0208,  # 0.001 + 0.099 / 5
    2.5: 0.0505,
    5: 0.1,
    26.25: 0.08550179,  # a quarter of the way down: 0.001 + 0.099 (1 + cos 45) / 2
    47.5: 0.0505,
    68.75: 0.01549821,
    90: 0.001,
}


@pytest.mark.parametrize("epoch", TABLE)
def test_the_papers_schedule(epoch):
    assert 0.1 * warmup_cosine(epoch / 90, 5 / 90) == pytest.approx(TABLE[epoch], rel=1e-6)


def test_without_a_warmup_and_beyond_the_end():
    assert warmup_cosine(0, 0) == 1
    assert warmup_cosine(1.2, 0.1) == warmup_cosine(1, 0.1) == pytest.approx(0.01)
    for warmup in (1, -0.1):
        with pytest.raises(UserError, match="warmup"):
            warmup_cosine(0.5, warmup)


def test_sgd_is_torchs():
    ours = [torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))]
    theirs = [torch.nn.Parameter(ours[0].detach().clone())]
    a = make_optimizer("sgd", 0.9)(ours, lr=0.1, wd=0.02)
    b = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=0.02)
    for step in range(6):
        for (p,), opt in ((ours, a), (theirs, b)):
            (p**2 * (step + 1)).sum().backward()
            opt.step()
            opt.zero_grad()
    assert torch.allclose(ours[0], theirs[0], atol=1e-6)
    with pytest.raises(UserError, match="did you mean sgd"):
        make_optimizer("sdg", 0.9)


def test_a_run_follows_it(run, tmp_path, monkeypatch):
    rates, momenta = [], []
    real = ParamScheduler.after_fit

    def after_fit(self):
        rates.extend(self.hps["lr"])
        momenta.extend(h["mom"] for h in self.opt.hypers)
        real(self)

    monkeypatch.setattr(ParamScheduler, "after_fit", after_fit)
    words = ("finetune", "--dataset", "digits", "--arch", "thin_resnet10", "--no-pretrained")
    words += ("--scales", "8", "--limit", "64", "--bs", "16", "--epochs", "4", "--lr", "0.1")
    words += ("--set", "train.schedule=cosine", "--set", "train.optimizer=sgd")
    done = run(*words, "--set", "train.warmup=1", "--run-dir", tmp_path / "r", "--json", "-")
    assert done[0] == 0, done[2]
    assert len(json.loads(done[1])["accuracy"]) == 1
    assert rates == pytest.approx([0.1 * warmup_cosine(i / 16, 0.25) for i in range(16)])
    assert set(momenta) == {0.9}
    code, _, err = run(*words, "--set", "train.warmup=5")
    assert (code, "5 epochs of warm-up in a training of 4" in err) == (2, True)
    for wrong in ("train.schedule=cosin", "train.optimizer=sdg"):
        code, _, err = run(*words, "--set", wrong)
        assert (code, "did you mean" in err) == (2, True)
