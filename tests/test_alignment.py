"""The fit before all others: the small subnets alone move, without labels, to what the canonical
one gives."""

import copy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from rich.console import Console

from msun_fastai import run as runs
from msun_fastai.callbacks.alignment import aligning
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.choices import baseline_recipe, check_choices
from msun_fastai.entries import entry_recipe, parse_entry
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.losses import DISTANCES, alignment_loss
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel, save_model_folder
from msun_fastai.models.weights import build_net
from msun_fastai.plan import find_rate, plan
from msun_fastai.plots import plot_history, read_history
from msun_fastai.recipe import Recipe
from msun_fastai.training import fits
from msun_fastai.views import make_views

QUIET = Console(quiet=True)
ALIGNED = {"model.weights": "w.safetensors", "train.align": 1, "train.epochs": 1}


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_loss_sums_the_distances_to_the_canonical_features(distance):
    torch.manual_seed(0)
    small, middle, large = (torch.randn(2, 3, side, side) for side in (2, 4, 4))
    given = [small.requires_grad_(), middle.requires_grad_(), large.requires_grad_()]
    loss = alignment_loss(given, distance)
    dist = DISTANCES[distance]
    halved = torch.nn.functional.avg_pool2d(large, 2)
    # the middle one is compared on its own grid, whatever the smallest has
    assert loss.item() == pytest.approx((dist(small, halved) + dist(middle, large)).item())
    loss.backward()
    assert small.grad.abs().sum() > 0
    assert middle.grad.abs().sum() > 0
    assert large.grad is None
    half = [torch.full((1, 1, 1, 1), value).half() for value in (600.0, 0.0)]
    assert alignment_loss(half) == 360_000  # in float32, for float16 has no such number
    with pytest.raises(UserError, match="distance"):
        alignment_loss(given, "manhattan")


def started(make_learner, **options):
    """A Learner whose network has statistics of its own, as one from trained weights has."""
    learn = make_learner(**options)
    model = learn.model.train()
    with torch.no_grad():
        model(*(torch.randn(8, 3, s, s) for s in model.entry_scales))
    learn.freeze()
    return learn


def align(learn, epochs=1, distance="mse", images=32):
    set_seed(2)
    learn.dls.train.rng.seed(0)
    learn.dls.train.n = images
    learn.dls.valid.n = 16
    with aligning(learn, distance):
        learn.fit_one_cycle(epochs, 2e-3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"alignment": "native", "norm": "per_scale", "consistency": "ensemble"},
        {"views": "native", "alignment": "native"},
        {"views": "down"},
    ],
    ids=["canonical", "native, own batch norms", "native views", "smaller views"],
)
def test_only_the_small_subnets_move(make_learner, options):
    learn = started(make_learner, **options)
    net = learn.model
    x = torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        answers = net.eval()(x)
    align(learn)
    assert learn.model is net
    moved = {n for n, v in net.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {n for n in before if n.startswith(("subnets.0.", "subnets.1."))}
    with torch.no_grad():
        assert torch.equal(net.eval()(x), answers)


def test_views_of_sizes_between_the_scales_are_aligned_too(make_learner, monkeypatch):
    """All that can be: the smallest scale has none below it, the canonical view is the target."""
    seen = []

    def views(x, scales, sizes):
        seen.append(dict(zip(scales, sizes)))
        return make_views(x, scales, sizes)

    learn = started(make_learner, reduced=1.0)
    monkeypatch.setattr("msun_fastai.callbacks.alignment.make_views", views)
    align(learn)
    assert {(s[16], s[64]) for s in seen} == {(16, 64)}
    assert {s[32] for s in seen} <= set(range(25, 33))
    assert len({s[32] for s in seen}) > 1


def test_the_term_falls_and_the_answers_come_nearer(make_learner):
    learn = started(make_learner)
    align(learn, 3, images=64)
    names = list(learn.recorder.metric_names)
    assert names[1:3] + names[-2:] == ["train_loss", "valid_loss", "align", "time"]
    terms = [row[names.index("align") - 1] for row in learn.recorder.values]
    assert terms[2] < 0.7 * terms[0]
    assert {row[0] for row in learn.recorder.values} == {None}  # no cross-entropy was trained


def test_labels_have_no_part_in_it(make_learner, dls):
    def aligned(order):
        learn = started(make_learner)
        learn.add_cb(Callback(before_batch=lambda cb: setattr(cb.learn, "yb", (order(cb.yb[0]),))))
        align(learn)
        return learn.model.state_dict()

    right, wrong = aligned(lambda y: y), aligned(lambda y: (y + 3) % 10)
    assert all(torch.equal(value, wrong[name]) for name, value in right.items())


def test_what_is_frozen_afterwards_stays(make_learner):
    """fastai moves every parameter that has a gradient, be it zero, by what its optimizer kept."""
    learn = started(make_learner)
    align(learn)
    learn.freeze()
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, 1e-2)
    moved = {n for n, p in learn.model.named_parameters() if not torch.equal(p, before[n])}
    norms = {n for n in moved if ".bn" in n or ".downsample.1." in n}  # fastai trains these
    assert {n.split(".")[0] for n in moved - norms} == {"head"}


def test_everything_is_put_back_after_an_error(make_learner):
    learn = started(make_learner)
    names = ("model", "opt", "splitter", "loss_func")
    before = [getattr(learn, name) for name in names]
    needed = [p.requires_grad for p in learn.model.parameters()]
    cbs = {type(cb) for cb in learn.cbs}

    net, wanted = learn.model, []

    def fails(cb):
        wanted.extend((n, p.requires_grad) for n, p in net.named_parameters())
        raise TrainingError("broken")

    with pytest.raises(TrainingError), aligning(learn):
        learn.fit(1, cbs=Callback(after_backward=fails))
    asked = [n for n, was in wanted if was]
    assert asked
    assert all(n.startswith(("subnets.0.", "subnets.1.")) for n in asked)
    assert all(getattr(learn, n) is value for n, value in zip(names, before))
    assert [p.requires_grad for p in learn.model.parameters()] == needed
    assert {type(cb) for cb in learn.cbs} == cbs
    assert all(p.grad is None for p in learn.model.parameters())


def test_a_run_aligns_first(recipe_of, tmp_path, capsys):
    recipe = recipe_of(**ALIGNED, **{"train.save_minutes": 60.0})
    folder = runs.run(recipe, Console(width=300), tmp_path / "run").folder
    told = [line for line in capsys.readouterr().out.splitlines() if "epoch 1/1" in line]
    assert [line.split(" epoch")[0] for line in told] == ["msun align", "msun head", "msun"]
    rows = read_history(folder / "history.csv")
    assert [row["phase"] for row in rows] == ["1", "2", "3"]
    assert list(rows[0])[-4:] == ["align", "ce", "si", "time"]
    for row in rows:
        aligned = row["phase"] == "1"
        assert bool(row["align"]) == aligned
        assert {bool(row[name]) for name in ("train_loss", "ce", "si")} == {not aligned}
        assert row["valid_loss"]
    assert {file.stem for file in plot_history(rows, tmp_path)} == {"loss", "accuracy"}


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, [("align", 3), ("head", 1), ("", 5)]),
        ({"train.schedule": "cosine", "train.warmup": 0.5}, [("align", 3), ("", 5)]),
        ({"model.pretrained": False, "model.start": "run"}, [("align", 3), ("head", 1), ("", 5)]),
        ({"train.align": 0}, [("head", 1), ("", 5)]),
    ],
)
def test_the_fits_of_a_recipe(values, parts):
    recipe = Recipe().with_values({"train.align": 3, **values}, "test")
    assert [(fit.part, fit.epochs) for fit in fits(recipe, None)] == parts


def test_dry_run_knows_of_it(recipe_of):
    found = plan(recipe_of(**ALIGNED, **{"train.bs": 40}), QUIET)
    assert found["epochs"] == 3
    assert found["trained_params"] == found["params"]


@pytest.mark.slow
def test_rate_finder_knows_of_it(recipe_of, tmp_path, monkeypatch):
    """What it looks for is the rate of everything where the head has no fit of its own."""
    trained = []
    real = TrainingStep._gradients

    def noted(self, xb, yb, size):
        trained.append(all(p.requires_grad for p in self.learn.model.parameters()))
        real(self, xb, yb, size)

    monkeypatch.setattr(TrainingStep, "_gradients", noted)
    values = {**ALIGNED, "train.schedule": "cosine", "train.warmup": 0.5}
    find_rate(recipe_of(**values), QUIET, tmp_path / "found")
    assert trained
    assert all(trained)


@pytest.mark.slow
def test_tensorboard_takes_what_it_logs(recipe_of, tmp_path):
    pytest.importorskip("tensorboard")
    runs.run(recipe_of(**ALIGNED, **{"train.log": "tensorboard"}), QUIET, tmp_path / "run")
    assert list((tmp_path / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.pretrained": False}, "random weights give nothing to align with"),
        ({"model.scales": [32]}, "one scale alone"),
        ({"model.method": "vanilla"}, "vanilla has no subnets .*; it takes msun"),
        ({"model.method": "snet"}, "snet has no subnets"),
        ({"model.method": "san"}, "san has no subnets"),
        ({"verb": "linear-probe"}, "linear-probe trains no subnets"),
    ],
)
def test_where_it_means_nothing(recipe_of, values, says):
    recipe = recipe_of(**{"train.align": 1, "model.pretrained": True, **values})
    with pytest.raises(UserError, match=says) as error:
        check_choices(recipe, None)
    assert "\n" not in str(error.value)


def test_a_trained_network_is_judged_by_its_own_method(recipe_of, tmp_path):
    net = build_net(NetConfig("thin_resnet10", 2, (16, 32), "rsnet"))
    saved = SavedModel(net.eval(), ["a", "b"], Preprocessing())
    start = str(save_model_folder(tmp_path / "model", saved))
    with pytest.raises(UserError, match="rsnet has no subnets"):
        check_choices(recipe_of(**{"model.start": start, "train.align": 1}), None)


def test_a_learner_without_such_subnets_is_refused(make_learner):
    learn = make_learner(method="rsnet")
    with pytest.raises(UserError, match="rsnet has no subnets"), aligning(learn):
        pass


def test_methods_beside_it_leave_it_out(recipe_of):
    recipe = recipe_of(**ALIGNED, baseline="vanilla")
    check_choices(recipe, None)
    assert baseline_recipe(recipe).train.align == 0
    kept = {name: entry_recipe(recipe, parse_entry(name)).train.align for name in ("msun", "snet")}
    assert kept == {"msun": 1, "snet": 0}
