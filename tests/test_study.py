"""The reduced study: its trials can be run, and its page says what its JSON holds."""

import json

import numpy as np
import pytest
from conftest import ROOT

from msun_fastai.choices import check_choices
from msun_fastai.errors import UserError


@pytest.fixture(autouse=True)
def study(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "reduced_study")


@pytest.fixture
def place(tmp_path):
    from trials import Place

    return Place("micro", str(tmp_path), tmp_path / "runs")


@pytest.mark.parametrize("size", ["micro", "full"])
def test_every_trial_has_a_recipe(size, tmp_path):
    from questions import TRIALS
    from trials import Place, plan, trial_recipe

    place = Place(size, str(tmp_path), tmp_path)
    for trial in TRIALS.values():
        if trial.parent is None:  # else it is checked against a network that is not there yet
            check_choices(trial_recipe(place, trial, 42), None)
    waves = plan(place, list(TRIALS.values()))
    before = set()
    for wave in waves:
        assert all(t.trial.parent in before for t in wave if t.trial.parent is not None)
        before |= {t.trial.name for t in wave}
    assert before == set(TRIALS)
    folders = [t.folder for wave in waves for t in wave]
    assert len(set(folders)) == len(folders) == sum(t.seeds for t in TRIALS.values())


def test_questions_name_every_trial():
    from questions import QUESTIONS, TRIALS

    asked = {name for q in QUESTIONS for name in q.trials}
    assert asked == set(TRIALS)
    assert [q.number for q in QUESTIONS] == list(range(1, len(QUESTIONS) + 1))


@pytest.mark.slow
def test_a_study_is_run_and_goes_on(place, monkeypatch, capsys):
    """Two trials on the embedded dataset, and one that starts from a third."""
    import trials
    from questions import network
    from results import Results, collected
    from rich.console import Console

    real = trials.study_recipe
    small = {
        "data.dataset": "shapes",
        "data.limit": 60,
        "data.classes": None,
        "train.epochs": 1,
        "train.bs": 16,
    }
    monkeypatch.setattr(
        trials, "study_recipe", lambda place: real(place).with_values(small, "test")
    )
    none = {"consistency.kind": "none"}
    given = [
        network("plain", "vanilla", own_sizes=True),
        network("several", "msun", 2, none, rules=True),
        network("after", "msun", 1, none, start="several", verb="finetune"),
    ]
    console = Console(width=200)
    waves = trials.plan(place, given)
    trials.train(place, waves, console)
    found = collected(waves, "micro")
    results = Results(found)
    assert results["several"].each.shape == (2, len(trials.SIZES))
    assert results["several"].mean.deviation is not None
    run = found["trials"]["several"]["runs"][0]
    # the rule that routed is one of the rules that were tried
    nearest = run["test"]["rules"]["nearest"]["accuracy"]
    assert nearest == pytest.approx(run["test"]["routed"]["accuracy"], abs=1e-4)
    valid = run["valid"]["rules"]
    assert valid["calibrated"]["mean_accuracy"] >= valid["nearest"]["mean_accuracy"]
    assert valid["calibrated"]["mean_accuracy"] >= valid["up"]["mean_accuracy"]
    assert run["test"]["rules"]["calibrated"]["rule"] == valid["calibrated"]["rule"]
    plain = found["trials"]["plain"]["runs"][0]["test"]
    assert plain["native"]["accuracy"][-1] == plain["routed"]["accuracy"][-1]
    assert plain["native"]["macs"][0] < plain["routed"]["macs"][0]
    files = {t.folder: (t.folder / trials.TESTED).stat().st_mtime_ns for w in waves for t in w}
    trials.train(place, trials.plan(place, given), console)  # nothing is done again
    assert {f: (f / trials.TESTED).stat().st_mtime_ns for f in files} == files
    (waves[0][0].folder / trials.TESTED).unlink()
    small["train.epochs"] = 2
    others = trials.plan(place, given)
    with pytest.raises(UserError, match=r"train\.epochs"):  # another recipe in the same folder
        trials.train(place, others, console)


def made_up():
    """Figures of every trial, as `results.collected` gives them."""
    from questions import TRIALS
    from trials import RULES, SCALES, SIZES

    rng = np.random.default_rng(0)

    def sweep():
        macs = [1e6 * (1 + i) for i in range(len(SIZES))]
        accuracy = rng.random(len(SIZES)).tolist()
        return {"accuracy": accuracy, "macs": macs, "subnet": [64] * len(SIZES), "images": 500} | {
            "params": 1_000_000
        }

    def part(trial):
        found = {"routed": sweep()}
        if trial.own_sizes:
            found |= {"native": sweep(), "ideal": sweep()}
        if trial.by_size:
            found["by_size"] = sweep()
        if trial.rules:
            rules = {"mean_accuracy": rng.random(), "mean_macs": 1e7}
            found["rules"] = dict.fromkeys(RULES, rules)
            found["subnets"] = {str(scale): sweep()["accuracy"] for scale in SCALES}
        return found

    def run(trial, seed):
        about = {"commit": "0123456789abcdef", "device": "cpu", "threads": 1, "seconds": 60.0}
        own = {"own_accuracy": rng.random(), "train_images": 2040, "seed": seed}
        parts = {} if trial.elsewhere else {"valid": part(trial), "test": part(trial)}
        return {**parts, **own, **about}

    return {
        "size": "micro",
        "sizes": list(SIZES),
        "trials": {
            name: {"method": t.method, "values": t.values}
            | {"runs": [run(t, 42 + i) for i in range(t.seeds)]}
            for name, t in TRIALS.items()
        },
    }


def test_a_page_of_figures(tmp_path):
    """Means and deviations in the tables, differences in the words, plots beside the JSON."""
    from pages import Differences, draw, readme_part, results_page
    from questions import QUESTIONS
    from results import Results

    found = made_up()
    file, page = tmp_path / "results" / "figures.json", tmp_path / "RESULTS.md"
    text = results_page(found, file, page)
    each = np.array([r["test"]["routed"]["accuracy"] for r in found["trials"]["mst"]["runs"]])
    means = 100 * each.mean(1)
    assert f"| {means.mean():.1f} ± {means.std(ddof=1):.1f} | 7.0 | 60 |" in text
    assert all(f"## {q.number}. {q.title}\n" in text for q in QUESTIONS)
    assert "[the JSON](results/figures.json)" in text
    assert f"{sum(len(t['runs']) for t in found['trials'].values())} trainings" in text
    other = np.array([r["test"]["routed"]["accuracy"] for r in found["trials"]["vanilla"]["runs"]])
    apart = 100 * (each - other)[:, -1]
    words = f"{Differences(Results(found))['mst less vanilla'][64]}"
    assert words == f"{apart.mean():+.1f} ± {apart.std(ddof=1):.1f}"
    part = readme_part(found)
    assert part.splitlines()[3].startswith("| mst | ")
    draw(Results(found), tmp_path / "plots")
    assert len(list((tmp_path / "plots").glob("*.png"))) == 3


@pytest.mark.parametrize("size", ["micro", "full"])
def test_the_page_is_what_the_figures_say(size, tmp_path):
    """RESULTS.md and README.md hold no figure that is not in the JSON."""
    from pages import PICTURES, readme_part, results_page

    file = ROOT / "benchmarks" / "results" / f"reduced_study_{size}.json"
    if not file.is_file():
        pytest.skip(f"the study was not run in size {size}")
    found = json.loads(file.read_text(encoding="utf-8"))
    page = ROOT / "benchmarks" / ("RESULTS.md" if size == "micro" else f"RESULTS-{size}.md")
    assert page.read_text(encoding="utf-8") == results_page(found, file, page)
    if size == "micro":
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert readme_part(found) in readme
        (picture, _), *_ = PICTURES[1]
        assert f"](benchmarks/results/{file.stem}/{picture})\n" in readme
