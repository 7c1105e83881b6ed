"""The training loop: what a step changes, and that other callbacks leave the method as it is."""

import pickle

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.torch_core import set_seed
from torch import nn

from msun_fastai.callbacks.consistency import ScaleInvariance
from msun_fastai.callbacks.views import MultiScaleViews
from msun_fastai.errors import UserError
from msun_fastai.learner import Consistency, msun_learner
from msun_fastai.losses import si_loss
from msun_fastai.views import make_views, resize_batch

NO_SI, FULL_SI = Consistency("none"), Consistency(weight=1.0)


class Probe(Callback):
    """Keep the first training batch's loss and terms as they go into backward, then stop."""

    order = 99

    def before_backward(self):
        self.loss_grad_seen = float(self.learn.loss_grad.detach())
        self.terms_seen = {k: float(v) for k, v in self.learn.terms.items()}
        self.shown = float(self.learn.loss)

    def before_step(self):
        self.grads = [p.grad.clone() for p in self.learn.model.parameters() if p.grad is not None]
        raise CancelBatchException


def one_step(make_learner, *cbs, **options):
    learn = make_learner(**options)
    learn.dls.train.rng.seed(0)
    set_seed(11)
    probe = Probe()
    learn.dls.train.n = 16
    learn.fit(1, 1e-3, cbs=[probe, *cbs])
    return probe


def test_a_step_changes_every_subnet_and_the_unified_network(make_learner):
    learn = make_learner()
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.dls.train.n = 16
    learn.fit(1, 1e-2)
    same = [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])]
    assert same == []


def test_without_cross_entropy_only_the_subnets_learn_and_all_of_them(make_learner):
    """The SI term's own gradient reaches each subnet and nothing behind the features."""
    learn = make_learner()
    model = learn.model.train()
    out = model(*(torch.randn(4, 3, s, s) for s in model.entry_scales))
    si_loss(out.features).backward()
    for subnet in model.subnets:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in subnet.parameters())
    assert all(p.grad is None for part in (model.deep, model.head) for p in part.parameters())


def test_the_loss_is_equation_8(make_learner):
    probe = one_step(make_learner, consistency=FULL_SI)
    ce, si = probe.terms_seen["ce"], probe.terms_seen["si"]
    assert probe.loss_grad_seen == pytest.approx(ce + si, rel=1e-5)
    own = one_step(make_learner)  # the weight that the study speaks for
    assert own.terms_seen["si"] == pytest.approx(si, rel=1e-5)
    assert own.loss_grad_seen == pytest.approx(ce + 0.1 * si, rel=1e-5)
    assert probe.shown == pytest.approx(ce / 3, rel=1e-5)
    assert 3 * 1.5 < ce < 3 * 4  # three cross-entropies over ten classes


def test_the_sum_is_over_the_scales_cross_entropies(make_learner):
    learn = make_learner(consistency=NO_SI)
    x, y = learn.dls.train.one_batch()
    learn.model.train()
    logits = learn.model(*make_views(x, (16, 32, 64))).logits
    y_plain = y.as_subclass(torch.Tensor)
    expected = sum(nn.functional.cross_entropy(o, y_plain).item() for o in logits)
    learn = make_learner(consistency=NO_SI)
    learn.dls.train = [(x, y)]
    probe = Probe()
    learn.dls = DataLoaders([(x, y)], [(x, y)], device="cpu")
    learn.fit(1, cbs=probe)
    assert probe.loss_grad_seen == pytest.approx(expected, rel=1e-4)


def test_floor_and_weight(make_learner):
    high = one_step(make_learner, consistency=Consistency(weight=1.0, floor=100.0))
    assert high.loss_grad_seen == pytest.approx(high.terms_seen["ce"] + 100, rel=1e-5)
    none = one_step(make_learner, consistency=NO_SI)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(high.grads, none.grads, strict=True))
    heavy = one_step(make_learner, consistency=Consistency(weight=5.0))
    ce, si = heavy.terms_seen["ce"], heavy.terms_seen["si"]
    assert heavy.loss_grad_seen == pytest.approx(ce + 5 * si, rel=1e-5)
    assert not all(torch.allclose(a, b, atol=1e-6) for a, b in zip(heavy.grads, none.grads))


@pytest.mark.parametrize("method", ["san", "mst"])
def test_detached_larger_scale_is_a_constant(make_learner, method):
    """What reaches the features: with the cross-entropies' part taken out, nothing at the largest
    scale."""
    found = {}
    for detach in (False, True):
        consistency = Consistency("si", 3.0, detach=detach)
        learn = make_learner(method=method, consistency=consistency, scale_metrics=False)
        learn.dls.train.rng.seed(0)
        learn.dls.train.n, learn.dls.valid.n = 16, 1
        set_seed(11)
        grads = found[detach] = []

        class Look(Callback):
            order = ScaleInvariance.order + 1
            run_valid = False

            def after_loss(self, grads=grads):
                features = self.learn.view_features
                term = self.learn.loss_grad - sum(
                    self.loss_func(logits, *self.yb) for logits in self.learn.view_logits
                )
                grads.extend(
                    torch.autograd.grad(term, features, retain_graph=True, materialize_grads=True)
                )
                grads.append(float(self.learn.terms["si"]))
                raise CancelBatchException

        learn.fit(1, 1e-3, cbs=Look())
    assert found[True].pop() == pytest.approx(found[False].pop())
    sizes = [float(g.abs().max()) for g in found[False]]
    assert min(sizes) > 0
    assert torch.allclose(found[True][0], found[False][0], atol=1e-3 * sizes[0])
    assert float(found[True][-1].abs().max()) < 1e-5 * sizes[-1]


def test_terms_pickled_before_they_could_be_detached():
    old = ScaleInvariance(2.0)
    del old.__dict__["detach"]
    features = [
        torch.ones(1, 1, 1, 1, requires_grad=True),
        torch.zeros(1, 1, 1, 1).requires_grad_(),
    ]
    again = pickle.loads(pickle.dumps(old))
    si_loss(features, again.distance, again.detach).backward()
    assert features[1].grad.item() == -2


def share(probe):
    """How much of the backpropagated loss is the SI term, from what went into the backward pass."""
    return (probe.loss_grad_seen - probe.terms_seen["ce"]) / probe.terms_seen["si"]


def test_mixup_leaves_the_weight_of_si(make_learner):
    probe = one_step(make_learner, MixUp(0.4), consistency=Consistency(weight=2.0))
    assert share(probe) == pytest.approx(2, rel=1e-3)


def test_mixup_mixes_every_view_the_same_way(make_learner):
    learn = make_learner()
    seen = {}

    class Look(Callback):
        order = MultiScaleViews.order + 1
        run_valid = False

        def before_batch(self):
            seen.update({v.shape[-1]: v.mean((1, 2, 3)) for v in self.xb})
            raise CancelBatchException

    learn.dls.train.n = 16
    learn.fit(1, cbs=[MixUp(0.4), Look()])
    assert sorted(seen) == [16, 32, 64]
    for side in (16, 32):
        assert torch.allclose(seen[side], seen[64], atol=2e-2)


def test_gradient_accumulation_scales_both_terms_alike(make_learner):
    plain = one_step(make_learner)

    class AfterAccumulation(Probe):
        def before_backward(self):
            super().before_backward()
            self.n = self.learn.gradient_accumulation.n_acc / len(self.learn.yb[0])

    learn = make_learner(consistency=FULL_SI)
    learn.dls.train.rng.seed(0)
    set_seed(11)
    probe = AfterAccumulation()
    learn.dls.train.n = 16
    learn.fit(1, 1e-3, cbs=[GradientAccumulation(64), probe])
    assert probe.n == 4
    ce, si = probe.terms_seen["ce"], probe.terms_seen["si"]
    assert probe.loss_grad_seen == pytest.approx((ce + si) / 4, rel=1e-4)
    assert ce == pytest.approx(plain.terms_seen["ce"], rel=1e-4)


class CPUMixedPrecision(MixedPrecision):
    """fastai's callback, whose autocast is fixed to CUDA, with the CPU's autocast and scaler."""

    order = MixedPrecision.order

    def before_fit(self):
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        self.learn.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        self.scales = []


def test_mixed_precision_leaves_the_weight_of_si(make_learner):
    plain = one_step(make_learner)

    class Unscaled(Probe):
        order = MixedPrecision.order - 1  # before the loss is scaled for the backward pass

    learn = make_learner(consistency=FULL_SI)
    learn.dls.train.rng.seed(0)
    set_seed(11)
    probe = Unscaled()
    learn.dls.train.n = 16
    learn.fit(1, 1e-3, cbs=[CPUMixedPrecision(), probe])
    assert share(probe) == pytest.approx(1, rel=1e-3)
    # 8 bits of mantissa, so alike and not equal: the step did run under autocast
    assert probe.terms_seen["si"] == pytest.approx(plain.terms_seen["si"], rel=0.05)
    assert probe.terms_seen["si"] != plain.terms_seen["si"]
    assert probe.terms_seen["ce"] == pytest.approx(plain.terms_seen["ce"], rel=0.05)


def test_order_of_the_callbacks():
    assert MixUp.order < MultiScaleViews.order < ScaleInvariance.order
    assert ScaleInvariance.order < GradientAccumulation.order < MixedPrecision.order


@pytest.mark.parametrize("views", ["native", "down"])
def test_views_policies_never_upsample(make_learner, views):
    learn = make_learner(views=views)
    sides = []

    class Look(Callback):
        order = MultiScaleViews.order + 1
        run_valid = False

        def before_batch(self):
            sides.append([v.shape[-1] for v in self.xb])

    learn.fit(1, cbs=Look())
    expected = [[16], [32], [64]] if views == "native" else [[16], [16, 32], [16, 32, 64]]
    assert sorted(map(tuple, {tuple(s) for s in sides})) == sorted(map(tuple, expected))


def test_multi_scale_training_draws_sizes_and_stays_canonical(make_learner):
    learn = make_learner(method="mst")
    sharpness = []

    class Look(Callback):
        order = MultiScaleViews.order + 1
        run_valid = False

        def before_batch(self):
            (x,) = self.xb
            assert x.shape[-1] == 64
            sharpness.append(float((x[..., 1:] - x[..., :-1]).abs().mean()))

    learn.fit(3, cbs=Look())
    assert max(sharpness) > 1.5 * min(sharpness)
    assert learn.model.entry_scales == (64,)


def test_vanilla_trains_like_a_plain_learner(make_learner):
    """One view, no further term: the loss is the cross-entropy of the canonical images."""
    probe = one_step(make_learner, method="vanilla")
    assert probe.loss_grad_seen == pytest.approx(probe.terms_seen["ce"])
    assert probe.shown == pytest.approx(probe.loss_grad_seen)
    assert set(probe.terms_seen) == {"ce"}


def test_columns_of_the_log(make_learner):
    learn = make_learner()
    learn.fit(2)
    names = list(learn.recorder.metric_names)
    assert names == [
        *("epoch", "train_loss", "valid_loss", "accuracy", "acc_16", "acc_32", "acc_64"),
        *("ce", "si", "time"),
    ]
    assert all(len(row) == len(names) - 2 for row in learn.recorder.values)
    assert all(v is not None for row in learn.recorder.values for v in row)
    assert len(learn.validate()) == 5


def test_accuracy_per_scale_is_that_of_the_rescaled_batches(make_learner):
    learn = make_learner()
    learn.fit_one_cycle(8, 5e-3)
    row = dict(zip(list(learn.recorder.metric_names)[2:], learn.validate(), strict=False))
    right = dict.fromkeys((16, 32, 64), 0)
    with torch.no_grad():
        for x, y in learn.dls.valid:
            for scale in right:
                logits = learn.model(resize_batch(x.as_subclass(torch.Tensor), scale))
                right[scale] += int((logits.argmax(1) == y).sum())
    assert len(set(right.values())) > 1  # else the test could not tell the scales apart
    for scale, n in right.items():
        assert row[f"acc_{scale}"] == n / len(learn.dls.valid_ds)


@pytest.mark.parametrize("event", ["before_step", "before_backward", "after_loss"])
def test_a_step_that_fails_leaves_no_graph_behind(make_learner, event):
    learn = make_learner()

    def fail(callback):
        raise RuntimeError("out of memory")

    broken = Callback(**{event: fail})
    broken.order = 98
    with pytest.raises(RuntimeError, match="out of memory"):
        learn.fit(1, cbs=broken)
    if event != "after_loss":  # there the terms may still be asked for
        assert learn.view_features == []
        assert learn.view_logits == []
    learn.fit(1)


def test_a_callback_of_the_pair_can_be_removed(make_learner):
    learn = make_learner()
    learn.remove_cb(ScaleInvariance)
    learn.fit(1)
    assert learn.recorder.values[-1][-1] is None
    assert learn.recorder.values[-1][-2] > 0


def test_same_seed_same_weights(make_learner):
    def weights():
        learn = make_learner()
        learn.fit_one_cycle(2, 3e-3)
        return learn.model.state_dict()

    a, b = weights(), weights()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_bad_options(make_learner, dls):
    for options, says in (
        ({"consistency": Consistency(weight=-1.0)}, "must not be negative"),
        ({"views": "every"}, "views: unknown value"),
    ):
        with pytest.raises(UserError, match=says):
            make_learner(**options)
    with pytest.raises(UserError, match=r"did you mean si|known: none, si"):
        Consistency("sii")
    with pytest.raises(UserError, match="NativeImageDataLoaders"):
        msun_learner(DataLoaders([1], [1]))
