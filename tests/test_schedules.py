"""The papers' schedules against tables computed by hand, and their optimizer against torch's."""

import json

import pytest
import torch
from fastai.callback.schedule import ParamScheduler

from msun_fastai.errors import UserError
from msun_fastai.recipe import TrainSection
from msun_fastai.schedules import (
    check_milestones,
    make_optimizer,
    milestones_within,
    warmup_cosine,
    warmup_step,
)
from msun_fastai.training import rate_over

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


# ScaleNet's 300 epochs on CIFAR at 0.1, divided by ten at 240 and 270; with a warm-up of 10 from 0
STEPS = {0: 0.0, 5: 0.05, 10: 0.1, 239.99: 0.1, 240: 0.01, 269.99: 0.01, 270: 0.001, 300: 0.001}


@pytest.mark.parametrize("epoch", STEPS)
def test_scalenets_schedule(epoch):
    rate = 0.1 * warmup_step(epoch / 300, 10 / 300, (240 / 300, 270 / 300), lowest=0)
    assert rate == pytest.approx(STEPS[epoch], abs=1e-12)


def test_sans_schedule():
    """From the whole rate to nothing: half a cosine without a warm-up."""
    rates = [warmup_cosine(epoch / 120, 0, lowest=0) for epoch in (0, 30, 60, 90, 120)]
    assert rates == pytest.approx([1, 0.85355339, 0.5, 0.14644661, 0])


def test_a_recipes_schedule():
    """Epochs become shares of its training, whatever the schedule."""
    given = {"epochs": 120, "warmup": 6.0, "lowest": 0.2}
    rate = rate_over(TrainSection(schedule="cosine", **given))
    assert [rate(0), rate(0.025), rate(0.05), rate(1)] == pytest.approx([0.2, 0.6, 1, 0.2])
    rate = rate_over(TrainSection(schedule="step", milestones=[60, 90], **given))
    positions = (0, 0.05, 0.499, 0.5, 0.75)
    assert [rate(p) for p in positions] == pytest.approx([0.2, 1, 1, 0.1, 0.01])


def test_steps_without_a_warmup():
    assert warmup_step(0, 0, (0.5,)) == 1
    assert warmup_step(0.05, 0.1, (0.5,)) == pytest.approx(0.505)  # half of the way from 0.01
    with pytest.raises(UserError, match="warmup"):
        warmup_step(0.5, 1, (0.5,))


@pytest.mark.parametrize(
    ("schedule", "milestones", "says"),
    [
        ("step", [], r"needs epochs .* --set train.milestones=\[5\]"),
        ("step", [4, 4], "4, 4: not ascending"),
        ("step", [6, 4], "not ascending"),
        ("step", [4, 10], "that of training, 10"),
        ("step", [1], "end of the warm-up, 1"),
        ("step", [float("nan")], "nan: not ascending"),
        ("cosine", [4], r"schedule cosine has none; give --set train.milestones=\[\]"),
    ],
)
def test_milestones_that_are_wrong(schedule, milestones, says):
    with pytest.raises(UserError, match=says):
        check_milestones(schedule, milestones, 1, 10)


def test_milestones_that_are_right():
    check_milestones("step", [1.5, 4, 9], 1, 10)
    check_milestones("one_cycle", [], 1, 10)
    assert milestones_within([240, 270], 300, 2) == [1.6, 1.8]
    assert milestones_within([], 300, 2) == []


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


@pytest.fixture
def followed(monkeypatch):
    """The rates and momenta of every step of the trainings to come."""
    rates, momenta = [], []
    real = ParamScheduler.after_fit

    def after_fit(self):
        rates.extend(self.hps["lr"])
        momenta.extend(h["mom"] for h in self.opt.hypers)
        real(self)

    monkeypatch.setattr(ParamScheduler, "after_fit", after_fit)
    return rates, momenta


WORDS = ("finetune", "--dataset", "digits", "--arch", "thin_resnet10", "--no-pretrained")
WORDS += ("--scales", "8", "--limit", "64", "--bs", "16", "--epochs", "4", "--lr", "0.1")
WORDS += ("--set", "train.optimizer=sgd", "--set", "train.report=false", "--set", "data.workers=0")


def test_a_run_follows_it(run, tmp_path, followed):
    rates, momenta = followed
    words = (*WORDS, "--set", "train.schedule=cosine")
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


def test_a_run_follows_the_steps(run, tmp_path, followed):
    rates, _ = followed
    words = (*WORDS, "--set", "train.schedule=step", "--set", "train.warmup=1")
    words += ("--set", "train.lowest=0.0")
    done = run(*words, "--set", "train.milestones=[2, 3]", "--run-dir", tmp_path / "r")
    assert done[0] == 0, done[2]
    rise = [0, 0.025, 0.05, 0.075]
    assert rates == pytest.approx([*rise, *[0.1] * 4, *[0.01] * 4, *[0.001] * 4])
    code, _, err = run(*words)
    assert (code, "give --set train.milestones=[2]" in err) == (2, True)
