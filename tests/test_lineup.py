"""Methods trained side by side: entries, their recipes, the figures, going on."""

import csv
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import SMALL
from rich.console import Console

from msun_fastai import lineup as lineups
from msun_fastai.choices import resolved
from msun_fastai.cli import training
from msun_fastai.entries import entry_recipe, entry_recipes, parse_entry
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.evaluate import sweep
from msun_fastai.labelled import find_images
from msun_fastai.lineup import plan_lineup, train_lineup
from msun_fastai.models.methods import METHODS
from msun_fastai.models.saving import load_model_folder
from msun_fastai.recipe import Recipe, load_recipe

QUIET = Console(quiet=True)
SIZES = (16, 28)
ENTRIES = ("vanilla@16", "msun+none")
OPTIONS = {**SMALL, "train.epochs": 1, "train.save_minutes": 60.0}
del OPTIONS["train.report"]  # off unless somebody asks


def entries_of(*texts):
    return [parse_entry(text) for text in texts]


def command(photos, folder, *words, **values):
    """The words of the command that makes what `trained` has."""
    given = ["methods", *ENTRIES, "--data", photos, "--run-dir", folder, "--sizes", "16,28"]
    for key, value in {**OPTIONS, **values}.items():
        given += ["--set", f"{key}={json.dumps(value)}"]
    return [str(word) for word in (*given, *words)]


@pytest.fixture(scope="module")
def base(photos):
    return Recipe().with_values({**OPTIONS, "data.path": str(photos)}, "test")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Two entries with two seeds, trained: the line-up, and how they stand."""
    folder = tmp_path_factory.mktemp("lineup") / "all"
    lineup = plan_lineup(base, entries_of(*ENTRIES), 2, folder, SIZES)
    return lineup, train_lineup(lineup, QUIET)


@pytest.fixture
def no_training(monkeypatch):
    def refuse(*given):
        raise AssertionError("trained again")

    monkeypatch.setattr(lineups, "run", refuse)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("mst", "mst", {}),
        ("snet+sd", "snet+sd", {"consistency.kind": "sd"}),
        (
            "msun+per_scale+native+none",
            "msun+none+per_scale+native",
            {
                "consistency.kind": "none",
                "model.norm": "per_scale",
                "model.alignment": "native",
            },
        ),
        (
            "msun+si@S2",
            "msun+si@128,224",
            {
                "consistency.kind": "si",
                "model.scales": [128, 224],
                "model.grids": None,
                "model.routing": "nearest",
            },
        ),
    ],
)
def test_words_are_recognised(text, name, values):
    entry = parse_entry(text)
    assert (entry.name, entry.values) == (name, values)
    assert parse_entry(name) == entry


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vanila", "vanila: method: unknown value 'vanila'; did you mean vanilla?"),
        ("snet+sdd", "snet+sdd: unknown word 'sdd'; did you mean sd?"),
        ("snet+", "snet+: unknown word ''; known: canonical, ensemble, native, none, per_scale"),
        ("snet+sd+si", "snet+sd+si: sd, si: two of them are of one kind"),
        ("snet@16,8", "snet@16,8: scales"),
        ("snet@", "snet@: scales"),
        ("../x", "../x: method: unknown value"),
    ],
)
def test_words_that_mean_nothing(text, says):
    with pytest.raises(UserError) as error:
        parse_entry(text)
    assert str(error.value).startswith(says)


@pytest.mark.parametrize("method", METHODS)
def test_an_entry_is_what_the_verb_trains(method):
    """The recipe of `pretrain --method` but for what all entries have in common."""
    nothing = dict.fromkeys(inspect.signature(training.options).parameters)
    given = {**nothing, "dataset": "shapes", "arch": "thin_resnet10", "scales": "16,24,32"}
    alone = training.chosen_recipe("pretrain", {**given, "method": method})
    # whatever the recipe that they rest on has of its own
    others = {"method": "rsnet", "consistency": "sd", "alignment": "native", "norm": "shared"}
    base = training.chosen_recipe("pretrain", {**given, **others, "baseline": "mst"})
    assert resolved(entry_recipe(base, parse_entry(method))) == resolved(alone)
    words = {"consistency": "none", "scales": "16,24"}
    alone = training.chosen_recipe("pretrain", {**given, "method": method, **words})
    assert resolved(entry_recipe(base, parse_entry(f"{method}+none@16,24"))) == resolved(alone)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["vanilla", "vanilla+sd"], "vanilla+sd: consistency: vanilla has no two views"),
        (["mst+ensemble"], "mst+ensemble: consistency: mst draws the sizes"),
        (["msun", "mst", "msun+si"], "msun+si: is the same as msun; leave one out"),
        (["mst", "mst"], "mst: is the same as mst"),
        (["snet+per_scale"], "snet+per_scale: norm"),
    ],
)
def test_entries_that_cannot_be_trained(base, texts, says):
    with pytest.raises(UserError) as error:
        entry_recipes(base, entries_of(*texts))
    assert str(error.value).startswith(says)


def test_a_detached_term_is_of_the_entries_that_have_si(base):
    detached = base.with_values({"consistency.detach": True}, "test")
    texts = ("msun", "msun+sd", "snet+si", "san", "vanilla", "msun@32", "mst+si")
    found = entry_recipes(detached, entries_of(*texts))
    assert [recipe.consistency.detach for recipe in found.values()] == [
        *(True, False, True, False, False, False, True)
    ]
    plain = entry_recipes(base, entries_of(*texts))
    assert [name for name in plain if resolved(plain[name]) == resolved(found[name])] == [
        *("msun+sd", "san", "vanilla", "msun@32")
    ]


def test_sizes_between_scales_are_of_the_entries_that_have_several(base):
    reduced = base.with_values({"train.reduced": 0.5}, "test")
    found = entry_recipes(reduced, entries_of(*METHODS, "msun@16,24", "san@24"))
    assert {name: recipe.train.reduced for name, recipe in found.items()} == {
        **dict.fromkeys(("vanilla", "mst", "san@24"), 0.0),
        **dict.fromkeys(("msun", "snet", "rsnet", "san", "msun@16,24"), 0.5),
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"verb": "linear-probe"}, "a linear probe is of one network"),
        ({"model.start": "x"}, "of its own method"),
        ({"data.stream": True}, "a local copy"),
        ({"data.path": "absent"}, "no such folder"),
    ],
)
def test_recipes_that_have_no_entries(base, tmp_path, values, says):
    with pytest.raises(UserError, match=says):
        plan_lineup(base.with_values(values, "test"), entries_of("mst"), 1, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_figures_are_those_of_the_run_folders(trained):
    lineup, found = trained
    assert [way.name for way in found.ways] == list(ENTRIES)
    assert (found.seeds, found.sizes) == ([42, 43], list(SIZES))
    assert (found.part, found.images) == ("validation", 9)
    images = []
    for way in found.ways:
        sweeps = []
        for run in way.runs:
            assert run.folder == lineup.folder / way.name / f"seed-{run.seed}"
            saved = load_model_folder(run.folder)
            samples = find_images(run.folder, saved).samples
            images.append([str(s.image) for s in samples])
            sweeps.append(sweep(saved, samples, SIZES))
        each = np.array([swept.accuracy for swept in sweeps])
        first = each[0]
        assert way.accuracy == pytest.approx(each.mean(0))
        # of a sample of two: the difference over the root of 2
        assert way.deviation == pytest.approx(np.abs(each[1] - first) / np.sqrt(2))
        means = each.mean(1)
        assert way.mean_accuracy == pytest.approx(means.mean())
        assert way.mean_deviation == pytest.approx(abs(means[1] - means[0]) / np.sqrt(2))
        assert (way.mean_macs, way.params) == (sweeps[0].mean_macs, sweeps[0].params)
        times = [json.loads((r.folder / "metrics.json").read_text()) for r in way.runs]
        assert way.seconds == pytest.approx(np.mean([m["train_seconds"] for m in times]))
    assert all(seen == images[0] for seen in images)
    values = {run.tested["accuracy"][0] for way in found.ways for run in way.runs}
    assert len(values) > 1  # else nothing was told apart
    recipe = load_recipe(str(lineup.folder / "vanilla@16" / "seed-43" / "recipe.toml"))
    assert (recipe.data.seed, recipe.train.seed, recipe.model.scales) == (42, 43, [16])
    assert not recipe.train.report


def test_what_is_split_by_a_seed_is_the_same_for_all(base):
    lineup = plan_lineup(
        base.with_values({"data.path": None, "data.dataset": "shapes"}, "test"),
        entries_of("mst"),
        2,
        "nowhere",
    )
    drawn = [[s.image for s in lineups.load_source(t.recipe).valid] for t in lineup.trainings]
    assert drawn[0] == drawn[1]
    assert [t.seed for t in lineup.trainings] == [42, 43]
    assert (lineup.sizes[0], lineup.sizes[-1], len(lineup.sizes)) == (16, 32, 13)


def test_one_training_has_the_interval_of_its_images(base, trained, no_training):
    lineup, both = trained
    one = train_lineup(plan_lineup(base, entries_of(*ENTRIES), 1, lineup.folder, SIZES), QUIET)
    way, tested = one.ways[1], both.ways[1].runs[0].tested
    assert (way.deviation, way.mean_deviation) == (None, None)
    assert way.accuracy == tested["accuracy"]
    assert way.ends()[1] == tuple(tested["mean_interval"])
    row = next(r for r in one.rows() if r["model"] == "msun+none")
    assert [row["low"], row["high"]] == tested["interval"][0]


def test_the_same_command_shows_and_writes_it_again(run, photos, trained, no_training):
    lineup, found = trained
    code, out, err = run(*command(photos, lineup.folder, "--seeds", 2, "--json", "-"))
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(found.as_dict())))
    assert err.startswith("4 there\n")
    way = found.ways[1]
    for i, size in enumerate([*SIZES, "mean"]):
        cells = next(line.split("│") for line in err.splitlines() if f"│ {size} " in line)
        means = [*way.accuracy, way.mean_accuracy]
        apart = [*way.deviation, way.mean_deviation]
        assert cells[3].strip() == f"{100 * means[i]:.1f} ± {100 * apart[i]:.1f}"
    assert f"{way.params / 1e6:.2f}" in err
    names = {p.name for p in lineup.folder.iterdir()}
    assert names == {*ENTRIES, "methods.json", "methods.csv", "accuracy.png", "cost.png"}
    assert json.loads((lineup.folder / "methods.json").read_text()) == json.loads(out)
    with (lineup.folder / "methods.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["model"], int(r["size"])) for r in rows] == [(e, s) for e in ENTRIES for s in SIZES]
    seeds = [float(rows[2][f"seed-{seed}"]) for seed in found.seeds]
    assert float(rows[2]["accuracy"]) == pytest.approx(np.mean(seeds))


def test_other_sizes_need_no_training(base, trained, tmp_path, no_training):
    folder = shutil.copytree(trained[0].folder, tmp_path / "copy")
    lineup = plan_lineup(base, entries_of("msun+none"), 1, folder, (20,))
    assert train_lineup(lineup, QUIET).sizes == [20]


def test_an_unfinished_run_goes_on_alone(base, trained, tmp_path, monkeypatch):
    whole = trained[0].folder
    folder = shutil.copytree(whole, tmp_path / "copy")
    stopped = folder / "msun+none" / "seed-43"
    for name in ("metrics.json", "sweep.json"):
        (stopped / name).unlink()
    shutil.rmtree(stopped / "model")
    real, went_on = lineups.run, []

    def counted(recipe, console, run_dir):
        went_on.append(run_dir)
        return real(recipe, console, run_dir)

    monkeypatch.setattr(lineups, "run", counted)
    lineup = plan_lineup(base, entries_of(*ENTRIES), 2, folder, SIZES)
    again = train_lineup(lineup, QUIET)
    assert went_on == [stopped]
    assert [way.accuracy for way in again.ways] == [way.accuracy for way in trained[1].ways]
    a, b = (d / "msun+none/seed-43/model/model.safetensors" for d in (whole, folder))
    assert a.read_bytes() == b.read_bytes()


def test_another_recipe_is_refused(base, trained, tmp_path, run, photos, no_training):
    folder = trained[0].folder
    other = base.with_values({"train.lr": 0.5}, "test")
    with pytest.raises(UserError, match=r"seed-42: its run has train.lr = 0.002, not 0.5; name"):
        plan_lineup(other, entries_of(*ENTRIES), 1, folder, SIZES)
    with pytest.raises(UserError, match="holds a run; name another for several"):
        plan_lineup(base, entries_of("mst"), 1, folder / "vanilla@16" / "seed-42")
    (tmp_path / "mst" / "seed-42").mkdir(parents=True)
    (tmp_path / "mst" / "seed-42" / "x").touch()
    with pytest.raises(UserError, match="exists and is not empty"):
        plan_lineup(base, entries_of("mst"), 1, tmp_path)


def test_a_failure_names_the_training(run, photos, tmp_path, monkeypatch):
    def fail(*given):
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(lineups, "run", fail)
    code, _, err = run(*command(photos, tmp_path / "x"))
    assert (code, err) == (1, "msun-fastai: vanilla@16 seed 42: the loss is not finite\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mst", "--dataset", "shapes", "--method", "msun"], "No such option"),
        (["mst", "--dataset", "shapes", "--seeds", "0"], "--seeds"),
        (["mst", "--dataset", "shapes", "--set", "model.norm=shared"], "each entry says it"),
        (["mst", "--recipe", "cifar10-linear-probe"], "is one for linear-probe"),
        (["mst", "--dataset", "shapes", "--sizes", "0"], "sizes"),
        (["mts", "--dataset", "shapes"], "mts: method: unknown value 'mts'"),
        (["mst"], "either --dataset NAME or --data PATH"),
    ],
)
def test_errors_are_one_line(run, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("methods", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not list(tmp_path.iterdir())


def start(*words):
    words = [sys.executable, "-m", "msun_fastai", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
def test_jobs_beside_each_other_give_the_same_weights(photos, tmp_path):
    """Stopped in the middle, too."""
    longer = {"train.epochs": 2, "train.save_minutes": 1e-9, "data.workers": 1}
    alone = start(*command(photos, tmp_path / "alone", **longer))
    assert alone.communicate(timeout=300)[1] == ""
    words = command(photos, tmp_path / "beside", "--jobs", 2, **longer)
    stopped, end = start(*words), time.monotonic() + 200
    while time.monotonic() < end and not list((tmp_path / "beside").glob("*/*/checkpoints/*.ckpt")):
        time.sleep(0.02)
    os.killpg(stopped.pid, signal.SIGINT)
    error = stopped.communicate(timeout=200)[1]
    assert stopped.returncode == 130
    assert error.splitlines() == [
        "msun-fastai: stopping after this step",
        f"msun-fastai: interrupted; the same command with --run-dir {tmp_path / 'beside'} goes on",
    ]
    assert not list((tmp_path / "beside").glob("*/*/metrics.json"))
    again = start(*words)
    assert again.communicate(timeout=300)[1] == ""
    for entry in ENTRIES:
        a, b = (
            tmp_path / name / entry / "seed-42/model/model.safetensors"
            for name in ("alone", "beside")
        )
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.slow
def test_a_failure_beside_others_ends_the_command(photos, tmp_path):
    words = command(photos, tmp_path / "x", "--jobs", 2, **{"train.lr": 1e12, "train.epochs": 200})
    failed = start(*words)
    error = failed.communicate(timeout=300)[1]
    assert failed.returncode == 1
    assert error.count("\n") == 1
    assert "seed 42: the loss is not finite" in error
