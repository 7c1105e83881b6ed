"""Distillation between scales: on logits made by hand, and in training."""

import math

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation
from rich.console import Console
from test_training import one_step

from msun_fastai import run as runs
from msun_fastai.callbacks.consistency import EnsembleDistillation, ScaleDistillation
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.choices import baseline_recipe, check_choices, method_recipe, resolved
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.learner import Consistency, save_learner
from msun_fastai.losses import ensemble_logits, ensemble_loss, kl_to, sd_loss
from msun_fastai.models.ensemble import Ensemble
from msun_fastai.models.methods import find_method
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import load_model_folder
from msun_fastai.recipe import load_recipe

SCALES = (16, 32, 64)
LN3 = math.log(3)
# of two classes: probabilities (1/4, 3/4), (1/2, 1/2), (3/4, 1/4), the smallest scale first
BY_HAND = ((0.0, LN3), (0.0, 0.0), (LN3, 0.0))


def hand(n=1):
    return [torch.tensor([row] * n, requires_grad=True) for row in BY_HAND]


def kl(p, q):
    """KL of two classes, of whose first p and q are the probabilities."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


# ---- on logits --------------------------------------------------------------------------------


def test_kl_is_from_teacher_to_student_and_a_mean_over_images():
    _, middle, large = hand()
    assert kl_to(large, middle).item() == pytest.approx(kl(0.75, 0.5))
    assert kl_to(middle, large).item() == pytest.approx(kl(0.5, 0.75))
    assert kl(0.75, 0.5) != pytest.approx(kl(0.5, 0.75), rel=0.05)
    assert kl_to(*hand(5)[:2]).item() == pytest.approx(kl(0.25, 0.5))
    both = kl_to(torch.cat([large, middle]), torch.cat([middle, middle]))
    assert both.item() == pytest.approx(kl(0.75, 0.5) / 2)


def test_every_larger_scale_teaches_every_smaller_one():
    """Pairs (large, middle), (large, small), (middle, small), and no other."""
    logits = hand()
    expected = kl(0.75, 0.5) + kl(0.75, 0.25) + kl(0.5, 0.25)
    loss = sd_loss(logits)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    small, middle, large = (z.grad for z in logits)
    assert large is None  # it only teaches
    # the gradient of KL(p || q) on q's logits is q - p, for each of its teachers
    assert small.tolist()[0] == pytest.approx([(0.25 - 0.75) + (0.25 - 0.5), 0.5 + 0.25])
    assert middle.tolist()[0] == pytest.approx([0.5 - 0.75, 0.25])
    assert sd_loss(logits[:1]).item() == 0


def test_the_ensemble_is_a_softmax_mean_of_constants():
    logits, weights = hand(), torch.tensor([0.0, 0.0, LN3], requires_grad=True)
    mean = ensemble_logits(logits, weights)  # alpha = 1/5, 1/5, 3/5
    assert mean.tolist()[0] == pytest.approx([0.6 * LN3, 0.2 * LN3])
    torch.nn.functional.cross_entropy(mean, torch.tensor([0])).backward()
    assert all(z.grad is None for z in logits)
    assert weights.grad[2] < 0 < weights.grad[0]  # more of the scale that is right
    assert weights.grad.sum() == pytest.approx(0, abs=1e-6)


def test_the_ensemble_teaches_all_and_larger_scales_smaller_ones():
    """2 / (S (S + 1)) times the pairs of (ensemble, large, middle, small), top down."""
    logits, weights = hand(), torch.zeros(3, requires_grad=True)
    mean = ensemble_logits(logits, weights)
    assert mean.softmax(1).tolist()[0] == pytest.approx([0.5, 0.5])
    p = {"m": 0.5, "l": 0.75, "i": 0.5, "s": 0.25}
    pairs = ("ml", "mi", "ms", "li", "ls", "is")
    expected = 2 / (3 * 4) * sum(kl(p[a], p[b]) for a, b in pairs)
    loss = ensemble_loss(logits, mean)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert weights.grad is None  # the cross-entropy alone trains them
    small, middle, large = (z.grad.tolist()[0][0] for z in logits)
    assert large == pytest.approx((0.75 - 0.5) / 6)
    assert middle == pytest.approx((0.5 - 0.5 + 0.5 - 0.75) / 6)
    assert small == pytest.approx((0.25 - 0.5 + 0.25 - 0.75 + 0.25 - 0.5) / 6)


def test_half_precision_logits_are_compared_in_full():
    logits = [torch.tensor([[x, 0.0]], dtype=torch.float16) for x in (-60_000.0, 60_000.0)]
    assert sd_loss(logits).item() == pytest.approx(60_000, rel=1e-2)
    mean = ensemble_logits(logits, torch.zeros(2))
    assert mean.dtype == torch.float32
    assert torch.isfinite(ensemble_loss(logits, mean))


def test_a_scale_that_is_not_there_leaves_its_share_to_the_others():
    ensemble = Ensemble(3)
    with torch.no_grad():
        ensemble.weight.copy_(torch.tensor([0.0, 9.0, LN3]))
    a, b = torch.randn(2, 4), torch.randn(2, 4)
    assert torch.allclose(ensemble([a, b], [0, 2]), 0.25 * a + 0.75 * b)


# ---- in training ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["san", "snet", "msun", "mst"])
def test_the_loss_is_equation_4(make_learner, method):
    options = Consistency("sd", weight=3.0, ce_weight=0.5)
    probe = one_step(make_learner, method=method, consistency=options)
    ce, sd = probe.terms_seen["ce"], probe.terms_seen["sd"]
    views = 2 if method == "mst" else 3
    assert sd > 0
    assert probe.loss_grad_seen == pytest.approx(0.5 * ce + 3 * sd, rel=1e-5)
    assert probe.shown == pytest.approx(ce / views, rel=1e-5)


@pytest.mark.parametrize("method", ["rsnet", "msun"])
def test_the_ensembles_cross_entropy_and_distillation_are_added(make_learner, method):
    probe = one_step(make_learner, method=method, consistency=Consistency("ensemble", weight=2.0))
    ce, ens, own = (probe.terms_seen[name] for name in ("ce", "ens", "ens_ce"))
    assert ens > 0
    assert 1 < own < 4
    assert probe.loss_grad_seen == pytest.approx(ce + own + 2 * ens, rel=1e-5)


def test_mixed_images_and_the_ensemble(make_learner):
    probe = one_step(make_learner, MixUp(0.4), method="rsnet")
    total = sum(probe.terms_seen.values())
    assert probe.loss_grad_seen == pytest.approx(total, rel=1e-5)


def small_learner(make_learner, shapes, views="all", **options):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=(16, 24), bs=8, num_workers=0, views=views, augment="none", device="cpu"
    )
    learn = make_learner(dls=dls, **{"method": "rsnet", "scale_metrics": False, **options})
    learn.dls.train.n = 32
    return learn


@pytest.mark.parametrize("precision", ["full", "bf16"])
def test_the_ensembles_weights_are_learnt(make_learner, shapes, tmp_path, precision):
    learn = small_learner(make_learner, shapes)
    assert learn.model.ensemble.weight.tolist() == [0, 0]
    learn.freeze()  # they belong to the head
    learn.fit(1, 1e-2, cbs=TrainingStep(precision))
    weights = learn.model.ensemble.weight
    assert weights.abs().max() > 1e-4
    again = load_model_folder(save_learner(learn, tmp_path / "m")).model
    assert torch.equal(again.ensemble.weight, weights)


def test_steps_are_put_together_from_accumulated_batches(make_learner, shapes):
    """Four batches of 8 for a step are one of 32; nothing here depends on who is in a batch."""
    grads = []
    for n_acc, bs in ((1, 32), (32, 8)):
        learn = small_learner(make_learner, shapes)
        learn.dls.train.bs = bs
        for norm in learn.model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.forward = lambda x: x * 0.5
        found = []

        class Look(Callback):
            order = GradientAccumulation.order + 1

            def before_step(self, found=found):
                named = self.learn.model.named_parameters()
                found.append({n: p.grad.clone() for n, p in named if p.grad is not None})

        learn.fit(1, 0.0, cbs=[Look(), *([GradientAccumulation(n_acc)] if n_acc > 1 else [])])
        grads.append(found[0])
    assert len(grads[0]) > 10
    for name, grad in grads[0].items():
        assert (grad - grads[1][name]).abs().max() <= 1e-3 * grad.abs().max(), name
    assert grads[0]["ensemble.weight"].abs().sum() > 0


def test_a_batch_with_one_view_has_nothing_to_compare(make_learner, shapes):
    for kind, terms in (("sd", ["sd"]), ("ensemble", ["ens", "ens_ce"])):
        seen = []

        class Look(Callback):
            order = 99

            def before_backward(self, seen=seen, terms=terms):
                values = [float(self.learn.terms[name]) for name in terms]
                ce = float(self.learn.terms["ce"])
                seen.append((len(self.xb), values, float(self.learn.loss_grad.detach()) - ce))

        small_learner(make_learner, shapes, "down", consistency=kind).fit(1, 1e-3, cbs=Look())
        assert {views for views, *_ in seen} == {1, 2}
        for views, values, added in seen:
            assert (min(values) > 0) == (views == 2)
            assert added == pytest.approx(sum(values), abs=1e-5)


def test_out_of_memory_and_graphs_left_behind(make_learner, shapes):
    learn = small_learner(make_learner, shapes)

    def fail(callback):
        raise RuntimeError("broken")

    broken = Callback(before_backward=fail)
    broken.order = 98
    with pytest.raises(RuntimeError, match="broken"):
        learn.fit(1, cbs=broken)
    assert learn.view_logits == []
    assert learn.ensemble_logits is None


class Killed(BaseException):
    """What stands in for the end of the process."""


def test_a_stopped_run_goes_on_with_its_ensemble(recipe_of, tmp_path, monkeypatch):
    recipe = recipe_of(**{"model.method": "rsnet", "train.epochs": 1})
    whole = runs.run(recipe, Console(quiet=True), tmp_path / "whole").folder
    steps = iter(range(1, 100))
    real = TrainingStep._gradients
    with monkeypatch.context() as patched:

        def one(self, *given):
            real(self, *given)
            if next(steps) == 3:
                raise Killed

        patched.setattr(TrainingStep, "_gradients", one)
        with pytest.raises(Killed):
            runs.run(recipe, Console(quiet=True), tmp_path / "parts")
    parts = runs.run(recipe, Console(quiet=True), tmp_path / "parts").folder
    files = [folder / "model" / "model.safetensors" for folder in (whole, parts)]
    assert files[0].read_bytes() == files[1].read_bytes()
    ensemble = load_model_folder(whole).model.ensemble.weight
    assert ensemble.abs().max() > 0


# ---- what may be chosen -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "kind", "views", "says"),
    [
        ("san", "sd", "native", "no two views of an image to compare here; it takes none"),
        ("rsnet", "ensemble", "native", "no two views"),
        ("vanilla", "sd", "all", "no two views"),
        ("mst", "ensemble", "all", "mst draws the sizes of every batch"),
        ("msun", "ensembles", "all", "did you mean ensemble"),
    ],
)
def test_what_cannot_be(recipe_of, method, kind, views, says):
    recipe = recipe_of(**{"model.method": method, "consistency.kind": kind, "train.views": views})
    with pytest.raises(UserError, match=says) as raised:
        check_choices(recipe, None)
    assert "\n" not in str(raised.value)


def test_negative_weights():
    for make in (ScaleDistillation, EnsembleDistillation):
        with pytest.raises(UserError, match="must not be negative"):
            make(weight=-1.0)
    with pytest.raises(UserError, match="ce_weight"):
        Consistency("sd", ce_weight=-1.0)
    with pytest.raises(UserError, match="one scale here"):
        NetConfig("thin_resnet10", 2, SCALES, "mst", ensemble=True)


@pytest.mark.parametrize(
    ("method", "kind", "says"),
    [
        ("san", None, "detach is of si; sd has constant teachers already"),
        ("msun", "ensemble", "detach is of si; ensemble has constant teachers already"),
        ("msun", "none", "detach is of si; none compares no features"),
        ("vanilla", None, "detach is of si; none compares no features"),
    ],
)
def test_only_si_can_be_detached(recipe_of, make_learner, method, kind, says):
    values = {"model.method": method, "consistency.detach": True}
    values |= {} if kind is None else {"consistency.kind": kind}
    with pytest.raises(UserError, match=says) as raised:
        check_choices(recipe_of(**values), None)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=says):
        make_learner(method=method, consistency=Consistency(kind, detach=True))


def test_a_detached_term_in_a_run(recipe_of, tmp_path):
    """Written out in the recipe; a baseline that compares nothing goes without."""
    values = {"data.limit": 8, "train.epochs": 1, "model.scales": [16, 24]}
    weights = {}
    for detach in (False, True):
        recipe = recipe_of(**{"consistency.detach": detach, **values})
        folder = runs.run(recipe, Console(quiet=True), tmp_path / str(detach)).folder
        told = load_recipe(str(folder / "recipe.toml"))
        assert (told.consistency.kind, told.consistency.detach) == ("si", detach)
        assert told == resolved(recipe)
        other = method_recipe(told, "snet")
        check_choices(other, None)
        assert other.consistency.detach is False
        weights[detach] = (folder / "model" / "model.safetensors").read_bytes()
    assert weights[False] != weights[True]


def test_recipes_say_what_was_chosen(recipe_of):
    recipe = resolved(recipe_of(**{"model.method": "san", "baseline": "msun"}))
    assert (recipe.consistency.kind, recipe.model.norm, recipe.model.alignment) == (
        *("sd", "per_scale", "native"),
    )
    other = resolved(baseline_recipe(recipe))
    assert (other.consistency.kind, other.model.norm, other.model.alignment) == (
        *("si", "shared", "canonical"),
    )
    assert find_method("rsnet").consistency(None, SCALES, "native") == "none"


def test_a_trained_network_gets_an_ensemble_and_loses_it(make_learner, shapes, tmp_path):
    learn = small_learner(make_learner, shapes)
    with torch.no_grad():
        learn.model.ensemble.weight.fill_(3.0)
    folder = save_learner(learn, tmp_path / "m")
    kept = small_learner(make_learner, shapes, start=folder)
    assert kept.model.ensemble.weight.tolist() == [3.0, 3.0]
    without = small_learner(make_learner, shapes, start=folder, consistency="sd")
    assert without.model.ensemble is None
    plain = save_learner(without, tmp_path / "n")
    new = small_learner(make_learner, shapes, start=plain, consistency="ensemble")
    assert new.model.ensemble.weight.tolist() == [0.0, 0.0]
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        answers = [m.model.eval()(x) for m in (learn, kept, without, new)]
    assert all(torch.equal(a, answers[0]) for a in answers)
