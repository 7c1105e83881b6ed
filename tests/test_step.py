"""The training step: gradients in parts, precision, finite losses, averages, the best epoch."""

import copy

import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.callback.training import ShortEpochCallback
from torch import nn

from msun_fastai.callbacks.average import WeightAverage
from msun_fastai.callbacks.best import BestModel, EarlyStop
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.devices import check_precision
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.learner import Consistency


def without_norms(learn):
    """The Learner with nothing in its network that depends on the other images of a batch."""
    for parent in list(learn.model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
    with torch.no_grad():
        for p in learn.model.parameters():
            p.mul_(0.7)  # or activations grow without norms
    return learn


class Gradients:
    """The gradients before the first step, and what was logged of it."""

    def __init__(self, learn, cbs):
        self.found = None
        real = learn._step

        def step():
            if self.found is None:
                self.found = [p.grad.clone() for p in learn.model.parameters()]
                self.loss = learn.loss.clone()
                self.terms = {name: float(v) for name, v in learn.terms.items()}
            real()

        learn._step = step
        learn.fit(1, 1e-4, cbs=cbs)


@pytest.fixture
def few(shapes):
    """Loaders of three batches, at small scales, where it does not matter what is learned."""
    return NativeImageDataLoaders.from_source(
        shapes.limited(12, 0), scales=(16, 32), bs=4, num_workers=0, device="cpu"
    )


@pytest.fixture
def short_of_memory(monkeypatch):
    """Networks find no room for more than so many images in training; returns what they tried."""
    tried = []

    def limit(learn, most, error=None):
        real = learn.model.forward

        def forward(*views):
            if learn.model.training:
                tried.append(len(views[-1]))
                if len(views[-1]) > most:
                    raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return real(*views)

        monkeypatch.setattr(learn.model, "forward", forward)
        return tried

    return limit


@pytest.mark.parametrize("most", [8, 5, 1])
def test_out_of_memory_gives_the_same_gradients(make_learner, short_of_memory, most):
    weight = Consistency("si", 0.3)
    learn = without_norms(make_learner(consistency=weight))
    twin = without_norms(make_learner(consistency=weight))
    whole = Gradients(learn, [TrainingStep()])
    told = []
    tried = short_of_memory(twin, most)
    parts = Gradients(twin, [TrainingStep(tell=told.append)])
    for a, b in zip(whole.found, parts.found):
        assert (a - b).abs().max() <= 1e-3 * a.abs().max() + 1e-7
    assert torch.allclose(whole.loss, parts.loss, rtol=1e-5)
    assert whole.terms == pytest.approx(parts.terms, rel=1e-4)
    assert tried[0] == 16
    assert max(tried[len(told) :]) <= most  # it does not try again what failed
    sizes = {8: [8], 5: [8, 4], 1: [8, 4, 2, 1]}[most]
    assert [t.split(": from here on ")[1].split()[0] for t in told] == [str(s) for s in sizes]
    assert twin.train_iter == learn.train_iter == 5


def test_out_of_memory_of_the_cpu_and_of_others(make_learner, short_of_memory):
    learn = make_learner()
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
    told = []
    short_of_memory(learn, 8, error)
    learn.fit(1, 1e-4, cbs=TrainingStep(tell=told.append))
    assert len(told) == 1
    other = make_learner()
    short_of_memory(other, 8, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="do not fit"):
        other.fit(1, 1e-4, cbs=TrainingStep())


def test_nothing_is_small_enough(make_learner, short_of_memory):
    learn = make_learner()
    short_of_memory(learn, 0)
    with pytest.raises(TrainingError, match="out of memory with 1 images of 64 pixels"):
        learn.fit(1, 1e-4, cbs=TrainingStep(tell=lambda text: None))


def test_mixed_images_are_not_cut(make_learner, short_of_memory):
    learn = make_learner()
    short_of_memory(learn, 8)
    with pytest.raises(TrainingError, match="give a smaller --bs"):
        learn.fit(1, 1e-4, cbs=[TrainingStep(), MixUp()])


def test_the_step_is_fastais_own(make_learner):
    """At full precision and with enough memory nothing is different, bit by bit."""
    own, ours = make_learner(), make_learner()
    own.fit_one_cycle(1, 1e-3)
    torch.manual_seed(0)
    ours.fit_one_cycle(1, 1e-3, cbs=TrainingStep())
    for a, b in zip(own.model.state_dict().values(), ours.model.state_dict().values()):
        assert torch.equal(a, b)
    assert own.recorder.losses == ours.recorder.losses
    assert "_do_one_batch" not in ours.__dict__


def test_bf16_computes_in_bf16(make_learner):
    learn = make_learner()
    seen = []
    handle = learn.model.deep[0].register_forward_hook(
        lambda m, i, out: seen.append(out.dtype) if learn.training else None
    )
    learn.fit(1, 1e-3, cbs=TrainingStep("bf16"))
    handle.remove()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_fp16_scales_its_loss(make_learner, few, monkeypatch):
    """On a GPU; here the CPU stands in for one, whose scaler does the same."""
    monkeypatch.setattr("msun_fastai.callbacks.step.check_precision", lambda p, d: p)
    learn = make_learner(dls=few)
    scales, real = [], TrainingStep.before_step

    def looked_at(self):
        scales.append(float(self.learn.scaler.get_scale()))
        real(self)

    monkeypatch.setattr(TrainingStep, "before_step", looked_at)
    # one batch: a CPU takes seconds for each in half precision
    learn.fit(1, 1e-3, cbs=[TrainingStep("fp16"), ShortEpochCallback(0.01)])
    assert scales[0] == 2.0**16
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())


def test_precisions_that_are_not_there():
    with pytest.raises(UserError, match="precision fp16: not on the CPU"):
        check_precision("fp16", torch.device("cpu"))
    with pytest.raises(UserError, match="did you mean bf16"):
        check_precision("bfl6", torch.device("cpu"))


def test_not_finite_in_the_term_between_scales(make_learner, monkeypatch):
    learn = make_learner()
    monkeypatch.setattr(
        "msun_fastai.callbacks.consistency.si_loss", lambda f, *given: f[0].sum() * torch.nan
    )
    with pytest.raises(TrainingError, match=r"step 1 \(epoch 1, batch 1\), the term that compares"):
        learn.fit(1, 1e-3, cbs=TrainingStep())


def test_average_is_the_running_one(make_learner, few):
    learn = make_learner(dls=few)
    average = WeightAverage(0.8)
    expected = []
    validated = []

    class Watch(WeightAverage):
        order = WeightAverage.order + 1

        def __init__(self): ...
        def before_fit(self): ...
        def after_fit(self): ...

        def after_step(self):
            weights = {n: v.detach().clone() for n, v in self.learn.model.state_dict().items()}
            if not expected:
                expected.append(weights)
                return
            before = expected.pop()
            expected.append(
                {
                    n: 0.8 * before[n] + 0.2 * v if v.is_floating_point() else v
                    for n, v in weights.items()
                }
            )

        def before_validate(self):
            validated.append(copy.deepcopy(self.learn.model.state_dict()))

        def after_validate(self): ...

    learn.fit(2, 1e-3, cbs=[average, Watch()])
    for name, value in learn.model.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, expected[0][name], atol=1e-5), name
            assert torch.equal(value, validated[-1][name])
    assert average.average is None


def test_best_and_patience(make_learner, few):
    learn = make_learner(dls=few)
    losses = iter([3.0, 2.0, 2.5, 2.1, 1.0, 0.5])
    told, kept = [], []

    best = BestModel(lambda: kept.append(learn.epoch), patience=2)
    real = best.after_epoch

    class Fake(WeightAverage):
        order = best.order - 1

        def __init__(self): ...
        def before_fit(self): ...
        def after_step(self): ...
        def before_validate(self): ...
        def after_validate(self): ...
        def after_fit(self): ...

        def after_epoch(self):
            names = list(self.recorder.metric_names)
            self.recorder.log[names.index("valid_loss")] = next(losses)

    assert real is not None
    learn.fit(6, 1e-4, cbs=[Fake(), best, EarlyStop(best, told.append)])
    assert kept == [0, 1]
    assert len(learn.recorder.values) == 4
    assert "no lower validation loss for 2 epochs (the lowest was epoch 2's)" in told[0]
