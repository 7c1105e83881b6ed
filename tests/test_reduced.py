"""`train.reduced`: training views of the sizes between the scales."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.core import Callback, CancelBatchException, CancelValidException
from rich.console import Console

from msun_fastai import run as runs
from msun_fastai.callbacks import views as views_module
from msun_fastai.callbacks.views import MultiScaleViews
from msun_fastai.choices import check_choices, method_recipe
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.learner import save_learner
from msun_fastai.recipe import load_recipe
from msun_fastai.scales import calibrated

SCALES = (16, 32, 64)
BETWEEN = {16: {16}, 32: set(range(25, 33)), 64: set(range(49, 65))}  # to the nearest


@pytest.fixture
def sizes_seen(monkeypatch):
    """The scales of each batch's views, and the sizes to which they were reduced."""
    seen = []
    real = views_module.make_views

    def noted(x, scales, sizes):
        seen.append((tuple(scales), tuple(sizes)))
        return real(x, scales, sizes)

    monkeypatch.setattr(views_module, "make_views", noted)
    return seen


def batches(sides, policy="all", reduced=0.5, n=300):
    """Let views be made of `n` batches of each of `sides`."""
    torch.manual_seed(0)
    callback = MultiScaleViews(
        SCALES, policy, reduced=reduced, sides=[sorted(of) for of in BETWEEN.values()]
    )
    for side in sides:
        x = torch.rand(1, 1, side, side)
        for _ in range(n):
            callback.learn = SimpleNamespace(xb=(x,))
            callback.before_batch()


def pairs(seen):
    """The sizes of the views of each scale, one a batch."""
    return {scale: [dict(zip(*one))[scale] for one in seen if scale in one[0]] for scale in SCALES}


@pytest.mark.parametrize("method", ["msun", "snet", "rsnet", "san"])
def test_a_step_at_sizes_between_the_scales(make_learner, sizes_seen, method):
    torch.manual_seed(0)
    learn = make_learner(method=method, reduced=1.0, scale_metrics=False)
    learn.dls.train.n, learn.dls.valid.n = 16, 1
    before = {n: p.detach().clone() for n, p in learn.model.named_parameters()}
    learn.fit(1, 1e-2)
    assert [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])] == []
    [(scales, sizes)] = sizes_seen
    assert scales == SCALES
    assert all(size in BETWEEN[scale] for scale, size in zip(scales, sizes))


def test_each_batch_and_view_is_drawn_by_itself(sizes_seen):
    batches([64])
    drawn = pairs(sizes_seen)
    assert len(drawn[64]) == 300
    assert {scale: set(sizes) for scale, sizes in drawn.items()} == BETWEEN
    whole = [[size == scale for size in drawn[scale]] for scale in (32, 64)]
    # the scale itself is drawn, too: 1 of 8, and 1 of 16
    shares = (0.5 + 0.5 / 8, 0.5 + 0.5 / 16)
    for of, share in zip(whole, shares):
        assert sum(of) / 300 == pytest.approx(share, abs=0.09)
    both = sum(a and b for a, b in zip(*whole)) / 300
    assert both == pytest.approx(shares[0] * shares[1], abs=0.08)


def test_views_of_other_policies_are_reduced_too(sizes_seen):
    for policy, made in (("native", (1, 1, 1)), ("down", (3, 2, 1))):
        sizes_seen.clear()
        batches(SCALES, policy, reduced=1.0, n=100)
        drawn = pairs(sizes_seen)
        assert {scale: set(sizes) for scale, sizes in drawn.items()} == BETWEEN
        assert tuple(len(sizes) // 100 for sizes in drawn.values()) == made


def test_nothing_is_drawn_at_0(make_learner, sizes_seen):
    learn = make_learner()
    states = []

    class Look(Callback):
        def before_batch(self):
            states.append(torch.get_rng_state())
            if len(states) % 2 == 0:
                raise CancelBatchException

        def before_validate(self):
            raise CancelValidException

    first, last = Look(), Look()
    first.order, last.order = MultiScaleViews.order - 0.5, MultiScaleViews.order + 0.5
    learn.fit(1, cbs=[first, last])
    assert len(states) == 10
    assert all(torch.equal(a, b) for a, b in zip(states[::2], states[1::2]))
    assert set(sizes_seen) == {(SCALES, SCALES)}


def test_views_pickled_before_they_could_be_reduced():
    old = MultiScaleViews(SCALES)
    for name in ("reduced", "sides"):
        del old.__dict__[name]
    again = pickle.loads(pickle.dumps(old))
    assert tuple(again._sizes(SCALES)) == SCALES
    new = pickle.loads(pickle.dumps(MultiScaleViews((16, 32), reduced=1.0, sides=[[16], [27]])))
    assert new._sizes((16, 32)) == [16, 27]


def test_the_routing_is_the_networks_own(make_learner, shapes, tmp_path):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, routing=calibrated((20, 40)), bs=8, num_workers=0, device="cpu"
    )
    learn = make_learner(dls=dls, reduced=0.1)
    expected = {16: range(16, 17), 32: range(21, 33), 64: range(41, 65)}
    assert learn.multi_scale_views.sides == expected
    folder = save_learner(learn, tmp_path / "m")
    again = make_learner(start=folder, reduced=0.1)  # whose loaders route to the nearest
    assert again.multi_scale_views.sides == expected


def test_a_run_of_it(recipe_of, tmp_path, sizes_seen):
    values = {"data.path": None, "data.dataset": "shapes", "data.limit": 16, "train.reduced": 0.5}
    values |= {"model.scales": [16, 32], "train.bs": 2, "train.epochs": 1}
    recipe = recipe_of(**values)
    folder = runs.run(recipe, Console(quiet=True), tmp_path / "run").folder
    drawn = [sizes[-1] for _, sizes in sizes_seen]
    assert len(drawn) == 8
    assert set(drawn) <= BETWEEN[32]
    assert 0 < drawn.count(32) < 8
    told = load_recipe(str(folder / "recipe.toml"))
    assert told.train.reduced == 0.5
    assert method_recipe(told, "rsnet").train.reduced == 0.5
    assert method_recipe(told, "vanilla").train.reduced == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model.method": "mst"}, "reduced: mst draws a size for every batch already; leave it"),
        ({"model.method": "vanilla"}, "reduced: vanilla has one scale here, 32, and no sizes"),
        ({"model.scales": [24]}, "reduced: msun has one scale here, 24, and no sizes between"),
        (
            {"model.scales": [24, 25]},
            "reduced: routing nearest sends no size between the scales 24,25 to the larger one",
        ),
        (
            {"model.scales": [16, 32], "model.routing": "calibrated:31"},
            "reduced: routing calibrated:31 sends no size between the scales 16,32",
        ),
        ({"verb": "linear-probe"}, "reduced: a cached probe and a calibration see no views"),
        ({"train.reduced": 1.5}, "train.reduced = 1.5: Input should be less than or equal to 1"),
        ({"train.reduced": -0.5}, "train.reduced = -0.5: Input should be greater than"),
    ],
)
def test_what_cannot_be_reduced(recipe_of, values, says):
    with pytest.raises(UserError) as raised:
        check_choices(recipe_of(**{"train.reduced": 0.5, **values}), None)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_a_learner_refuses(make_learner):
    for options, says in (
        ({"reduced": 1.5}, "reduced: 1.5 is not a share, from 0 to 1"),
        ({"reduced": 0.5, "method": "vanilla"}, "vanilla has one scale here, 64"),
        ({"reduced": 0.5, "method": "mst"}, "mst draws a size"),
    ):
        with pytest.raises(UserError, match=says):
            make_learner(**options)


def test_a_probe_trained_by_steps_takes_it(recipe_of):
    values = {"verb": "linear-probe", "probe.protocol": "sgd", "train.reduced": 0.5}
    check_choices(recipe_of(**values), None)
