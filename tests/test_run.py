"""Runs by their recipes: what starts from another run, probes, dry runs, logs, pictures."""

import csv
import io
import json

import pytest
import torch
from conftest import SMALL
from PIL import Image
from rich.console import Console

from msun_fastai import run as runs
from msun_fastai.data.images import load_pixels
from msun_fastai.data.shapes import shapes_source
from msun_fastai.errors import TrainingError, UserError
from msun_fastai.evaluate import sweep
from msun_fastai.labelled import find_images
from msun_fastai.models.heads import classifiers, without_classifiers
from msun_fastai.models.saving import load_model_folder
from msun_fastai.plan import plan, trial_size
from msun_fastai.recipe import load_recipe
from msun_fastai.routed import routed_test

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def pretrained(photos, tmp_path_factory):
    """A run of ten classes, trained a little."""
    from msun_fastai.recipe import Recipe

    recipe = Recipe().with_values({**SMALL, "data.path": str(photos), "train.epochs": 1}, "test")
    return runs.run(recipe, QUIET, tmp_path_factory.mktemp("pretrained") / "run").folder


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Class folders of three classes, with a test part: what to transfer to."""
    folder = tmp_path_factory.mktemp("others")
    source = shapes_source(120, 60, seed=8)
    for part in ("train", "valid"):
        for i, sample in enumerate(getattr(source, part)):
            if sample.label in source.classes[:3]:
                into = "test" if part == "valid" and i % 2 else part
                file = folder / into / sample.label / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image = Image.fromarray(load_pixels(sample.image))
                image.resize(((15, 24, 34)[i % 3],) * 2).save(file)
    return folder


def test_everything_that_is_known_of_a_run(pretrained):
    names = {str(p.relative_to(pretrained)) for p in pretrained.rglob("*") if p.is_file()}
    assert names >= {
        *("recipe.toml", "environment.json", "history.csv", "metrics.json"),
        *("plots/loss.png", "plots/accuracy.png", "model/config.json"),
        *("checkpoints/best/config.json", "checkpoints/step-00000005.ckpt"),
    }
    environment = json.loads((pretrained / "environment.json").read_text())
    assert environment["processes"] == 1
    assert set(environment) >= {"commit", "device", "packages", "python", "started"}
    for name in ("loss", "accuracy"):
        with Image.open(pretrained / "plots" / f"{name}.png") as picture:
            assert picture.size == (840, 480)
    best = load_model_folder(pretrained / "checkpoints" / "best")
    assert best.model.config == load_model_folder(pretrained).model.config


def test_finetune_from_a_run(pretrained, others, recipe_of, tmp_path):
    """Its network, with a classifier for the new classes; the recipe's own is not asked for."""
    values = {"data.path": str(others), "model.start": str(pretrained), "model.arch": "vgg16"}
    recipe = runs.resolved(recipe_of(**values))
    assert (recipe.model.arch, recipe.model.scales) == ("thin_resnet10", [16, 24, 32])
    learn = runs.make_learner(recipe, runs.load_source(recipe))
    before = load_model_folder(pretrained).model
    for name, value in without_classifiers(before).items():
        assert torch.equal(learn.model.state_dict()[name], value), name
    assert [layer.out_features for layer in classifiers(learn.model)] == [3]
    frozen = {p.requires_grad for n, p in learn.model.subnets.named_parameters() if "conv" in n}
    assert frozen == {False}  # fastai trains the head first

    run = runs.run(recipe_of(**values), QUIET, tmp_path / "run")
    phases = [row["phase"] for row in csv.DictReader((run.folder / "history.csv").open())]
    assert phases == ["1", "2", "2"]
    assert run.metrics["classes"] == 3
    assert load_recipe(str(run.folder / "recipe.toml")).model.start == str(pretrained)
    after = load_model_folder(run.folder).model.state_dict()
    moved = [n for n, v in without_classifiers(before).items() if not torch.equal(after[n], v)]
    assert len(moved) > 50


def test_same_classes_keep_their_classifier(pretrained, photos, recipe_of):
    recipe = runs.resolved(recipe_of(**{"model.start": str(pretrained)}))
    learn = runs.make_learner(recipe, runs.load_source(recipe))
    before = load_model_folder(pretrained).model.state_dict()
    assert all(torch.equal(v, before[n]) for n, v in learn.model.state_dict().items())


@pytest.mark.parametrize("protocol", ["cached", "sgd"])
@pytest.mark.parametrize("views", ["native", "all"])
def test_linear_probe_moves_the_classifier_alone(
    pretrained,
    others,
    recipe_of,
    tmp_path,
    protocol,
    views,
):
    values = {"verb": "linear-probe", "probe.protocol": protocol, "train.views": views}
    values |= {"data.path": str(others), "model.start": str(pretrained), "train.lr": 0.02}
    run = runs.run(recipe_of(**values), QUIET, tmp_path / "run")
    before = load_model_folder(pretrained).model
    after = load_model_folder(run.folder).model.state_dict()
    for name, value in without_classifiers(before).items():
        assert torch.equal(after[name], value), name
    assert run.metrics["test_images"] > 0
    if protocol == "cached":
        report = json.loads((run.folder / "probe.json").read_text())
        assert report["images"]["train"] == run.metrics["train_images"]
        assert report["images"]["valid"] == run.metrics["valid_images"]
        assert report["views"] == views
    else:
        assert len(list(csv.DictReader((run.folder / "history.csv").open()))) == 2


def test_probe_never_chooses_on_what_it_reports(pretrained, photos, recipe_of, tmp_path):
    values = {"verb": "linear-probe", "model.start": str(pretrained), "train.views": "native"}
    run = runs.run(recipe_of(**values), QUIET, tmp_path / "run")
    report = json.loads((run.folder / "probe.json").read_text())
    assert run.metrics["measured_images"] == run.metrics["valid_images"] == 9
    assert sum(report["images"].values()) == run.metrics["train_images"] == 40


def test_best_epoch_is_kept(recipe_of, tmp_path, monkeypatch, capsys):
    recipe = recipe_of(**{"train.keep": "best", "train.ema": 0.5, "train.lr": 0.3})
    run = runs.run(recipe, Console(width=300), tmp_path / "run")
    rows = list(csv.DictReader((run.folder / "history.csv").open()))
    best = min(range(2), key=lambda i: float(rows[i]["valid_loss"]))
    assert f"kept: the weights of epoch {best + 1}" in capsys.readouterr().out
    kept = load_model_folder(run.folder / "checkpoints" / "best").model.state_dict()
    final = load_model_folder(run.folder).model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in final.items())


def test_label_smoothing_and_clipping_reach_the_training(recipe_of, tmp_path):
    losses = {}
    for name, values in {
        "plain": {},
        "smoothed": {"train.label_smoothing": 0.5},
        "clipped": {"train.clip": 1e-6, "train.optimizer": "sgd", "train.wd": 0.0},
        "sgd": {"train.optimizer": "sgd", "train.wd": 0.0},
    }.items():
        run = runs.run(recipe_of(**values, **{"train.epochs": 1}), QUIET, tmp_path / name)
        row = next(csv.DictReader((run.folder / "history.csv").open()))
        losses[name] = float(row["train_loss"])
    assert losses["smoothed"] != losses["plain"]
    assert abs(losses["clipped"] - losses["sgd"]) > 1e-4


def test_dry_run_says_what_a_run_would_be(recipe_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = plan(recipe_of(), QUIET)
    assert (found["data"], found["bad_images"]) == ({"train": 40, "valid": 9, "test": 0}, 0)
    assert (found["epochs"], found["batches"]) == (2, {"32": 5})
    macs = found["macs_per_image"]
    assert found["macs_per_step"] == {"32": 3 * 8 * sum(macs.values())}
    assert found["trained_params"] == found["params"]
    weights = 4 * found["params"] / 2**30
    assert found["memory_gib"] > 4 * weights - 0.01  # gradients, and two averages of Adam
    assert 0 < found["train_seconds"] < 60
    assert found["lines"][0].startswith("verb")
    assert not list(tmp_path.glob("*"))
    native = plan(recipe_of(**{"train.views": "native"}), QUIET)
    assert set(native["batches"]) == {"16", "24", "32"}
    assert native["macs_per_step"]["16"] == 3 * 8 * macs["16"]


def test_a_trial_has_as_many_pixels_of_small_images_as_of_large_ones():
    cpu = torch.device("cpu")
    sizes = {side: trial_size(cpu, 256, side) for side in (16, 32, 224, 448)}
    assert sizes == {16: 256, 32: 196, 224: 4, 448: 4}  # the batch at most, 4 at least
    assert trial_size(cpu, 2, 224) == 2
    assert trial_size(torch.device("cuda"), 256, 224) == 256


def test_dry_run_of_probes(pretrained, recipe_of):
    values = {"verb": "linear-probe", "model.start": str(pretrained), "train.views": "native"}
    cached = plan(recipe_of(**values), QUIET)
    sgd = plan(recipe_of(**values, **{"probe.protocol": "sgd"}), QUIET)
    assert (cached["epochs"], sgd["epochs"]) == (1, 2)
    assert cached["macs_per_step"] == sgd["macs_per_step"]
    assert sgd["trained_params"] == 256 * 10 + 10


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train.precision": "fp16"}, "not on the CPU"),
        ({"train.keep": "first"}, "keep: unknown value 'first'"),
        ({"train.log": "tensorbord"}, "did you mean tensorboard"),
        ({"probe.protocol": "cache"}, "did you mean cached"),
        ({"verb": "train"}, "verb: unknown value"),
        ({"model.start": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_wrong_choices(recipe_of, tmp_path, values, says):
    with pytest.raises(UserError, match=says):
        runs.run(recipe_of(**values), QUIET, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_network_comes_from_one_place(run, pretrained, photos, tmp_path):
    weights = tmp_path / "w.pth"
    torch.save({}, weights)
    words = ("finetune", "--data", photos, "--model", pretrained)
    for more in (["--arch", "vgg16"], ["--weights", weights], ["--set", "model.scales=[16]"]):
        code, _, error = run(*words, *more)
        assert (code, "brings its own network" in error) == (2, True)


def test_find_lr(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data", photos, "--arch", "thin_resnet10", "--scales", "16,24,32", "--bs", "8"]
    words += ["--no-pretrained", "--set", "data.workers=0", "--json", "lr.json", "--find-lr"]
    code, out, _ = run("finetune", *words, "--run-dir", "found")
    assert code == 0
    found = json.loads((tmp_path / "lr.json").read_text())
    assert 1e-7 < found["lr"] < 10
    assert f"suggested: --lr {found['lr']:.2g}" in out
    rows = list(csv.DictReader((tmp_path / "found" / "lr.csv").open()))
    rates = [float(row["lr"]) for row in rows]
    assert rates == sorted(rates)
    assert (tmp_path / "found" / "lr.png").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found", "lr.json"]


def test_verbs_and_their_recipes(run):
    code, _, error = run("pretrain", "--recipe", "demo")
    assert code == 2
    assert "is one for `msun-fastai finetune`, not for pretrain" in error
    code, out, _ = run("linear-probe", "--help")
    assert "--protocol" in out
    code, out, _ = run("finetune", "--help")
    assert "--protocol" not in out


def test_resume_takes_no_other_recipe(run, pretrained):
    code, _, error = run("finetune", "--resume", pretrained, "--lr", "3")
    assert (code, "leave --lr out" in error) == (2, True)
    code, _, error = run("finetune", "--resume", pretrained)
    assert (code, "is over" in error) == (2, True)


def test_tensorboard_gets_the_figures(recipe_of, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runs.run(recipe_of(**{"train.log": "tensorboard"}), QUIET, tmp_path / "run")
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train_loss", "valid_loss", "accuracy", "lr_0"} <= set(tags)


def test_find_lr_where_the_loss_breaks(recipe_of, tmp_path, monkeypatch):
    """It is the rate for everything where everything is trained, up to the step that broke."""
    from msun_fastai.callbacks.step import TrainingStep
    from msun_fastai.plan import find_rate

    steps, trained = iter(range(1000)), []
    real = TrainingStep._gradients

    def breaks(self, xb, yb, size):
        trained.append(all(p.requires_grad for p in self.learn.model.parameters()))
        if next(steps) == 40:
            raise TrainingError("the loss is not finite any more")
        real(self, xb, yb, size)

    monkeypatch.setattr(TrainingStep, "_gradients", breaks)
    values = {"train.schedule": "cosine", "train.warmup": 0.5, "model.weights": "w.safetensors"}
    find_rate(recipe_of(**values), QUIET, tmp_path / "found")
    assert len((tmp_path / "found" / "lr.csv").read_text().splitlines()) == 41
    assert all(trained)
    with pytest.raises(UserError, match="not empty"):
        find_rate(recipe_of(**values), QUIET, tmp_path / "found")


def test_one_process_looks(recipe_of, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--dry-run: one process"):
        plan(recipe_of(), QUIET)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain", "--set", "model.pretrained=true"], "starts from random weights"),
        (["linear-probe", "--lr", "0.1"], "--lr: a cached probe is not trained in steps"),
        (["pretrain", "--set", "train.warmup=2"], "give --set train.warmup=0.2"),
        (["finetune", "--set", "train.lr='0.1'"], "train.lr = '0.1'"),
        (["finetune", "--set", "train.lrr=0.1"], "did you mean train.lr"),
    ],
)
def test_what_does_not_go_together(run, photos, words, says):
    verb, *rest = words
    options = ["--data", photos, "--arch", "thin_resnet10", "--scales", "16,24,32"]
    code, _, error = run(verb, *options, *([] if "--lr" in rest else ["--epochs", "2"]), *rest)
    assert (code, says in error) == (2, True), error


def test_short_trainings_warm_up_shorter():
    from msun_fastai.cli.training import KEYS, chosen_recipe

    given = dict.fromkeys([*KEYS, "recipe", "preset", "assign"])
    given["smoke"] = False
    assert chosen_recipe("pretrain", given).train.warmup == 5
    assert chosen_recipe("pretrain", {**given, "epochs": 9}).train.warmup == 0.5
    kept = {**given, "epochs": 9, "assign": ["train.warmup=2.0"]}
    assert chosen_recipe("pretrain", kept).train.warmup == 2


def test_milestones_keep_their_share_of_a_training():
    from msun_fastai.cli.training import KEYS, chosen_recipe

    given = {**dict.fromkeys([*KEYS, "recipe", "preset", "assign"]), "smoke": False}
    given["recipe"] = "cifar10-scalenet44_d10"
    for epochs, milestones in ((None, [240, 270]), (30, [24, 27]), (600, [480, 540])):
        train = chosen_recipe("pretrain", {**given, "epochs": epochs}).train
        assert train.milestones == milestones
    kept = {**given, "epochs": 30, "assign": ["train.milestones=[10]"]}
    assert chosen_recipe("pretrain", kept).train.milestones == [10]


def test_probe_of_random_weights_trains_the_classifier_alone(recipe_of):
    recipe = runs.resolved(recipe_of(verb="linear-probe", **{"probe.protocol": "sgd"}))
    learn = runs.make_learner(recipe, runs.load_source(recipe))
    trained = [name for name, p in learn.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2
    assert all(name.startswith("head.") for name in trained)


def test_a_run_ends_with_its_report(recipe_of, tmp_path):
    """The method's and its baseline's, from what was measured; the metrics are there before it."""
    told = Console(record=True, quiet=False, file=io.StringIO(), width=200)
    recipe = recipe_of(**{"train.report": True, "train.epochs": 1, "baseline": "vanilla"})
    made = runs.run(recipe, told, tmp_path / "run")
    accuracies = [check_figures(f) for f in (made.folder, made.folder / "baseline")]
    assert any(of != of[::-1] for of in accuracies)  # else another order would not be seen
    for folder in (made.folder, made.folder / "baseline"):
        page = (folder / "report.html").read_text()
        metrics = json.loads((folder / "metrics.json").read_text())
        assert f"{100 * metrics['mean_accuracy']:.1f}" in page
        assert (folder / "report" / "accuracy.png").is_file()
    assert "vanilla" in (made.folder / "report.html").read_text()
    assert f"report {made.folder / 'report.html'}" in told.export_text()


def check_figures(folder):
    """What `metrics.json` says can be had again from the model and the images."""
    metrics = json.loads((folder / "metrics.json").read_text())
    saved = load_model_folder(folder)
    samples = find_images(folder, saved).samples
    found = sweep(saved, samples, metrics["sizes"])
    assert found.accuracy == metrics["accuracy"]
    assert [*found.macs] == metrics["macs"]
    means = metrics["mean_accuracy"], metrics["mean_macs"]
    assert (found.mean_accuracy, found.mean_macs) == means
    routed = routed_test(saved, samples)
    assert routed.accuracy == pytest.approx(metrics["native_accuracy"], abs=1e-6)
    assert {str(k): n for k, n in routed.counts.items()} == metrics["routing"]
    return found.accuracy
