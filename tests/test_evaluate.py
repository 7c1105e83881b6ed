"""Tests at input sizes and at own sizes: against prediction, against `flops`, and by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msun_fastai.answers import NOT_ASKED, OWN, Answers, Cell, at_own_sizes, at_sizes
from msun_fastai.bootstrap import mean_interval
from msun_fastai.compare import difference, names_of
from msun_fastai.data.images import load_pixels
from msun_fastai.data.resize import load_fitted
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.flops import network_cost
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import load_model_folder, save_model_folder, set_routing
from msun_fastai.models.weights import build_net
from msun_fastai.predict import Predictor, normalize
from msun_fastai.routed import Routed, routed_test
from msun_fastai.routing import ask_every_subnet, calibrated_rule, gain
from msun_fastai.scales import NEVER, sweep_sizes

SIZES = (16, 24, 40, 64)
SCALES = (16, 32, 64)


@pytest.fixture(scope="module")
def saved(saved_run):
    """A network with random weights whose answers differ."""
    loaded = load_model_folder(saved_run)
    torch.manual_seed(1)
    for parameter in loaded.model.parameters():  # else one class is the answer to everything
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return loaded


@pytest.fixture(scope="module")
def swept(saved, shapes):
    return sweep(saved, shapes.valid, SIZES, every_subnet=True, bs=7)


@pytest.fixture(scope="module")
def plain(saved):
    torch.manual_seed(2)
    model = build_net(NetConfig("thin_resnet10", 10, SCALES, method="vanilla")).eval()
    return replace(saved, model=model)


def logits_of(saved, samples, size, scale=None):
    """As the sweep has to do it, from the images themselves."""
    views = normalize(
        torch.stack([load_fitted(s.image, size) for s in samples]), saved.preprocessing
    )
    with torch.no_grad():
        if scale is None:
            return saved.model(views)
        i = saved.model.entry_scales.index(scale)
        return saved.model.classify(saved.model.subnet_features(views, i), i)


def test_every_subnet_at_every_size(saved, swept, shapes):
    codes = torch.tensor([shapes.classes.index(s.label) for s in shapes.valid])
    assert len(set(swept.answers.cells[64, 64].predicted.tolist())) > 1
    matrix = swept.matrix()
    for i, size in enumerate(SIZES):
        for k, scale in enumerate(SCALES):
            logits = logits_of(saved, shapes.valid, size, scale)
            cell = swept.answers.cells[size, scale]
            assert cell.predicted.tolist() == logits.argmax(1).tolist()
            loss = torch.nn.functional.cross_entropy(logits, codes, reduction="none")
            assert np.allclose(cell.loss, loss.numpy(), rtol=1e-3, atol=1e-4)
            assert matrix[i, k] == pytest.approx(float((logits.argmax(1) == codes).float().mean()))
    assert swept.subnet == (16, 16, 32, 64)
    assert swept.accuracy == pytest.approx([matrix[i, k] for i, k in enumerate((0, 0, 1, 2))])
    assert swept.mean_accuracy == pytest.approx(np.mean(swept.accuracy))


def test_the_same_whatever_the_batches_and_workers(saved, swept, shapes):
    for options in ({"bs": 64}, {"bs": 5, "workers": 2}):
        again = sweep(saved, shapes.valid, SIZES, **options)
        assert np.array_equal(again.answers.images, np.arange(len(shapes.valid)))
        assert np.array_equal(again.right, swept.right)
        assert np.allclose(again.loss, swept.loss, atol=1e-4)
        assert again.matrix() is None


def test_one_decode_is_large_enough_for_every_size(saved, shapes, tmp_path):
    """A JPEG is reduced while it is decoded, no further than the largest size bears."""
    file = tmp_path / "large.jpg"
    Image.fromarray(load_pixels(shapes.valid[0].image)).resize((400, 300)).save(file)
    samples = [Sample(file, shapes.classes[0])]
    several, one = sweep(saved, samples, (16, 64)), sweep(saved, samples, (64,))
    assert np.array_equal(several.loss[:, 1], one.loss[:, 0])


def test_a_stream_of_samples(saved, swept, shapes):
    found = sweep(saved, iter(shapes.valid), SIZES)
    assert np.array_equal(found.right, swept.right)


@pytest.mark.parametrize("rule", ["calibrated:20,30", "calibrated:0,1000000", "up"])
def test_prediction_takes_the_subnet_that_the_rule_names(saved, shapes, rule):
    """Whatever the rule would say of a side that was resized already."""
    model = build_net(replace(saved.model.config, routing=rule)).eval()
    model.load_state_dict(saved.model.state_dict())
    again = replace(saved, model=model)
    found = routed_test(again, shapes.valid)
    predictions = list(Predictor(again).predict([s.image for s in shapes.valid]))
    assert found.scale.tolist() == [p.scale for p in predictions]
    names = [again.classes[code] for code in found.cell.predicted]
    assert names == [p.label for p in predictions]
    for i, scale in enumerate(SCALES):
        assert model.entry_of(torch.zeros(1, 3, scale, scale)) == i
    assert model.entry_of(torch.zeros(1, 3, 25, 70)) == SCALES.index(model.route(25))


def test_every_subnet_sees_what_prediction_sees(saved, shapes, tmp_path):
    """A JPEG is decoded at a reduced scale for a small subnet, whatever the others need."""
    samples = []
    for i, sample in enumerate(shapes.valid[:6]):
        file = tmp_path / f"{i}.jpg"
        Image.fromarray(load_pixels(sample.image)).resize((400, 300)).save(file)
        samples.append(Sample(file, sample.label))
    asked = ask_every_subnet(saved, samples)
    for scale in SCALES:
        rule = f"calibrated:{0 if scale > 16 else NEVER},{0 if scale > 32 else NEVER}"
        model = build_net(replace(saved.model.config, routing=rule)).eval()
        model.load_state_dict(saved.model.state_dict())
        alone = routed_test(replace(saved, model=model), samples)
        assert set(alone.scale) == {scale}
        assert np.array_equal(asked.under(rule).cell.loss, alone.cell.loss)


@pytest.mark.parametrize("method", ["msun", "vanilla", "snet"])
def test_costs_are_those_of_flops(saved, shapes, method):
    config = NetConfig("thin_resnet10", 10, SCALES, method=method)
    torch.manual_seed(0)
    network = replace(saved, model=build_net(config).eval())
    found = sweep(network, shapes.valid[:2], sweep_sizes(16, 64))
    cost = network_cost(config, sweep_sizes(16, 64))
    assert dict(zip(found.sizes, found.macs)) == cost.macs_by_size
    assert dict(zip(found.sizes, found.subnet)) == cost.subnet_by_size
    assert (found.params, found.mean_macs) == (cost.params, cost.mean_macs)


def test_a_plain_network_at_the_size_itself(plain, shapes):
    samples = shapes.valid[:10]
    own = sweep(plain, samples, (24, 64), resize="native")
    brought = sweep(plain, samples, (24, 64))
    net = plain.model
    network = torch.nn.Sequential(net.subnets[0], net.deep[0], net.head[0])  # on its own grids
    with torch.no_grad():
        views = torch.stack([load_fitted(s.image, 24) for s in samples])
        expected = network(normalize(views, plain.preprocessing))
    assert own.answers.cells[24, 64].predicted.tolist() == expected.argmax(1).tolist()
    assert not np.allclose(own.loss[:, 0], brought.loss[:, 0], atol=1e-3)
    assert np.allclose(own.loss[:, 1], brought.loss[:, 1], atol=1e-5)
    assert own.macs[0] < brought.macs[0] == brought.macs[1] == own.macs[1]
    assert own.as_dict()["resize"] == "native"


def test_sizes_that_a_network_cannot_take(saved, plain, shapes):
    with pytest.raises(UserError, match="native is for networks of one scale"):
        sweep(saved, shapes.valid, SIZES, resize="native")
    with pytest.raises(UserError, match="every subnet brings images to its scale"):
        sweep(plain, shapes.valid[:2], (24, 64), every_subnet=True, resize="native")
    with pytest.raises(UserError, match="unknown value 'own'"):
        sweep(plain, shapes.valid, SIZES, resize="own")
    with pytest.raises(UserError, match=r"sizes: .* not ascending"):
        sweep(saved, shapes.valid, (32, 16))
    with pytest.raises(UserError, match="a side is a whole number of pixels"):
        sweep(saved, shapes.valid, (5000,))
    torch.manual_seed(2)
    deep = build_net(NetConfig("vgg11", 10, (64,), method="vanilla")).eval()
    with pytest.raises(UserError, match="sizes: 16: vgg11 takes 32 pixels or more"):
        sweep(replace(plain, model=deep), shapes.valid, (16, 64), resize="native")


def test_intervals_hold_the_accuracies(swept):
    each, mean = swept.intervals()
    assert len(each) == len(SIZES)
    for (low, high), accuracy in zip([*each, mean], [*swept.accuracy, swept.mean_accuracy]):
        assert low <= accuracy <= high
        assert high - low < 0.4
    figures = json.loads(json.dumps(swept.as_dict(), allow_nan=False))
    assert figures["images"] == 41
    assert figures["images_per_second"] > 0
    assert set(figures["matrix"]) == {"16", "32", "64"}


def test_own_sizes_are_answered_as_predict_does(saved, shapes):
    predictor = Predictor(saved)
    found = routed_test(saved, shapes.valid, bs=8)
    predictions = list(predictor.predict([s.image for s in shapes.valid]))
    names = [saved.classes[code] for code in found.cell.predicted]
    assert names == [p.label for p in predictions]
    assert found.scale.tolist() == [p.scale for p in predictions]
    assert found.answers.native.tolist() == [p.native_size for p in predictions]
    losses = [
        -np.log(dict(p.top)[s.label])
        for p, s in zip(predictions, shapes.valid)
        if s.label in dict(p.top)
    ]
    rows = [s.label in dict(p.top) for p, s in zip(predictions, shapes.valid)]
    assert np.allclose(found.cell.loss[rows], losses, atol=1e-3)
    cell = found.answers.cells[OWN, 32]
    assert 0 < (found.scale == 32).sum() < len(shapes.valid)
    assert (cell.predicted == NOT_ASKED).tolist() == (found.scale != 32).tolist()


def test_what_the_routing_saves_and_the_tables(saved, shapes):
    found = routed_test(saved, shapes.valid)
    counts = found.counts
    cost = network_cost(saved.model.config, SCALES)
    mean = sum(n * cost.macs_per_subnet[s] for s, n in counts.items()) / len(shapes.valid)
    assert sum(counts.values()) == len(shapes.valid)
    assert found.mean_macs == pytest.approx(mean)
    assert found.saving == pytest.approx(1 - mean / cost.macs_per_subnet[64])
    for rows in (found.by_subnet(), found.by_native_size()):
        assert sum(row["images"] for row in rows) == len(shapes.valid)
        right = sum(row["images"] * (row["accuracy"] or 0) for row in rows)
        assert right == pytest.approx(found.right.sum())
    for row in found.by_native_size():
        assert sum(row["subnets"].values()) == row["images"]
        inside = (found.answers.native > row["above"]) & (found.answers.native <= row["up_to"])
        assert inside.sum() == row["images"]
    json.dumps(found.as_dict(), allow_nan=False)


def test_other_rules_on_the_same_answers(saved, shapes):
    asked = ask_every_subnet(saved, shapes.valid)
    for rule in ("nearest", "up", "calibrated:20,40"):
        again = replace(saved, model=build_net(replace(saved.model.config, routing=rule)).eval())
        again.model.load_state_dict(saved.model.state_dict())
        alone = routed_test(again, shapes.valid)
        under = asked.under(rule)
        assert under.scale.tolist() == alone.scale.tolist()
        assert under.cell.predicted.tolist() == alone.cell.predicted.tolist()
    with pytest.raises(ValueError, match="every subnet"):
        routed_test(saved, shapes.valid).under("up")


def test_calibration_at_sizes_counts_each_image_at_each(saved, shapes):
    asked = ask_every_subnet(saved, shapes.valid, (16, 48))
    assert len(asked.answers.codes) == 2 * len(shapes.valid)
    swept = sweep(saved, shapes.valid, (16, 48), every_subnet=True)
    small = asked.answers.native == 16
    assert asked.answers.right(OWN, 32)[small].tolist() == swept.answers.right(16, 32).tolist()
    assert asked.answers.right(OWN, 64)[~small].tolist() == swept.answers.right(48, 64).tolist()
    # what is drawn again is the image, with both of its answers
    low, high = mean_interval(asked.right.reshape(2, -1).mean(0)[:, None])
    assert asked.interval() == (low[0], high[0])
    assert low[0] < asked.accuracy < high[0]
    rule = calibrated_rule(asked)
    better = gain(asked, rule)
    assert better.difference >= 0
    assert better.interval[0] <= better.difference <= better.interval[1]
    cheap = calibrated_rule(asked, 0.8)
    assert asked.under(cheap).mean_macs <= 0.8 * asked.macs[64]


def test_a_gain_is_over_the_better_fixed_rule_within_the_budget():
    """Subnet 32 alone is right: `up` sends it the three images of 20 pixels, `nearest` the one of
    40."""
    native, none = np.array([20, 20, 20, 40]), np.zeros(4, dtype=np.int64)
    cells = {(OWN, s): Cell(none + (s != 32), none.astype(np.float32)) for s in SCALES}
    asked = Routed("nearest", {16: 1, 32: 2, 64: 4}, Answers(np.arange(4), none, native, cells), [])
    rule = calibrated_rule(asked)
    assert asked.under(rule).accuracy == 1
    found = gain(asked, rule)
    assert (found.than, found.difference) == ("up", 0.25)
    assert gain(asked, rule, 0.5).than == "nearest"  # `up` costs 2.5 of 4, it 1.25
    assert gain(asked, rule, 0.5).difference == 0.75
    assert gain(asked, rule, 0.3).difference is None


def test_a_rule_is_saved_with_the_model(saved_run, tmp_path, shapes):
    folder = tmp_path / "run"
    shutil.copytree(saved_run, folder)
    before = load_model_folder(folder)
    assert set_routing(folder, "calibrated:100,200") == folder / "model"
    after = load_model_folder(folder)
    assert after.model.config == replace(before.model.config, routing="calibrated:100,200")
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name])
    image = np.zeros((90, 90, 3), np.uint8)
    assert Predictor(before).predict_one(image).scale == 64
    assert Predictor(after).predict_one(image).scale == 16
    for rule, said in (
        ("calibrated:100", "number of thresholds 1, of scales 3"),
        ("sideways", "unknown"),
    ):
        with pytest.raises(UserError, match=said):
            set_routing(folder, rule)
    assert load_model_folder(folder).model.config.routing == "calibrated:100,200"
    one = NetConfig("thin_resnet10", 10, SCALES, method="mst")
    with pytest.raises(UserError, match="mst has one scale"):
        replace(one, routing="calibrated:20,40")


def test_images_that_cannot_be_read(saved, shapes, tmp_path):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    samples = [shapes.valid[0], Sample(torn, shapes.classes[0]), *shapes.valid[1:5]]
    for answers in (at_sizes(saved, samples, (16, 32)), at_own_sizes(saved, samples)):
        assert answers.images.tolist() == [0, 2, 3, 4, 5]
        assert len(answers.unreadable) == 1
        assert "torn.jpg" in answers.unreadable[0]
    with pytest.raises(UserError, match=r"torn\.jpg"):
        at_own_sizes(saved, samples, on_bad="stop")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        at_sizes(saved, samples[1:2], (16,))
    with pytest.raises(UserError, match="label 'unicorn' is not among the 10 classes"):
        at_sizes(saved, [Sample(shapes.valid[0].image, "unicorn")], (16,))


def test_progress_counts_every_image(saved, shapes, tmp_path):
    torn = Sample(tmp_path / "none.jpg", shapes.classes[0])
    done = []
    at_own_sizes(saved, [*shapes.valid, torn], bs=8, told=done.append)
    assert sum(done) == len(shapes.valid) + 1
    assert len(done) == 6


def test_differences_are_paired_by_image(saved, swept, shapes):
    other = replace(swept, answers=replace(swept.answers, codes=swept.answers.codes.copy()))
    same = difference("a", other, "b", swept)
    assert same.at == [0.0] * len(SIZES)
    assert same.mean_interval == (0.0, 0.0)
    part = sweep(saved, shapes.valid[5:], SIZES)  # images 0 to 35 of another list
    part.answers.images += 5
    same_images = difference("a", part, "b", swept)
    assert (same_images.mean, same_images.mean_interval) == (0.0, (0.0, 0.0))
    for at, value in swept.answers.cells.items():
        wrong = replace(value, predicted=(value.predicted + 1) % 10)
        other.answers.cells = {**other.answers.cells, at: wrong}
    worse = difference("a", other, "b", swept)
    assert worse.mean == pytest.approx(other.mean_accuracy - swept.mean_accuracy)
    with pytest.raises(UserError, match="other sizes"):
        difference("a", replace(swept, sizes=(1, 2, 3, 4)), "b", swept)
    part.answers.images += 1000
    with pytest.raises(UserError, match="no image in common"):
        difference("a", part, "b", swept)


def test_names_of_runs(tmp_path):
    assert names_of(["runs/a", "runs/b/"]) == ["a", "b"]
    assert names_of(["x/a/model", "x/b/model", "c"]) == ["a", "b", "c"]
    assert names_of(["x/a", "y/a/model", "x/b"]) == ["x/a", "y/a", "b"]
    with pytest.raises(UserError, match="named twice"):
        names_of(["runs/a", "runs/../runs/a"])


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def world(tmp_path_factory, saved, shapes):
    """Class folders of pictures, and three model folders that know their classes."""
    root = tmp_path_factory.mktemp("world")
    for i, sample in enumerate(shapes.valid[:30]):
        file = root / "photos" / sample.label / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        side = (15, 22, 34, 60)[i % 4]
        Image.fromarray(load_pixels(sample.image)).resize((side, side)).save(file)
    save_model_folder(root / "msun" / "model", saved)
    for method in ("vanilla", "snet"):
        torch.manual_seed(4)
        model = build_net(NetConfig("thin_resnet10", 10, SCALES, method=method)).eval()
        save_model_folder(root / method / "model", replace(saved, model=model))
    return root


def test_evaluate(run, world, saved, tmp_path):
    code, out, _ = run(
        *("evaluate", "--model", world / "msun", "--data", world / "photos"),
        *("--sizes", "16:64:16", "--subnets", "--json", tmp_path / "x.json"),
        *("--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, out
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["sizes"], found["subnet"]) == ([16, 32, 48, 64], [16, 32, 32, 64])
    assert (found["images"], found["part"]) == (30, "all")
    assert {"accuracy", "macs", "mean_accuracy", "mean_macs", "params", "interval"} <= set(found)
    cost = network_cost(saved.model.config, found["sizes"])
    assert found["macs"] == list(cost.macs_by_size.values())
    assert "accuracy of every subnet at every size" in out
    assert "images a second" in out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"accuracy.png", "cost.png", "subnets.png", "accuracy.csv", "evaluate.json"}


def test_evaluate_at_own_sizes(run, world, tmp_path):
    code, out, _ = run(
        *("evaluate", "--model", world / "msun", "--data", world / "photos", "--native"),
        *("--json", "-", "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, out
    found = json.loads(out)
    assert [row["images"] for row in found["by_subnet"]] == [16, 7, 7]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "routing.png",
        "routing.csv",
        "routing.json",
    }


def test_routing_is_calibrated_and_used(run, world, tmp_path):
    shutil.copytree(world / "msun", tmp_path / "run")
    given = ("--model", tmp_path / "run", "--data", world / "photos", "--device", "cpu")
    code, out, _ = run("routing", *given)
    assert code == 0, out
    assert "nearest" in out
    assert "up" in out
    code, out, _ = run(
        *("routing", *given, "--calibrate", "--budget", "0.9"),
        *("--sizes", "16:64:8", "--json", tmp_path / "x.json"),
    )
    assert code == 0, out
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["routing"].startswith("calibrated:")
    fitted, held = found["fitted"], found["held_out"]
    assert (fitted["images"], held["images"]) == (10, 20)  # of three a class
    assert fitted["gain"]["difference"] >= 0
    assert fitted["rules"][0]["saving"] >= 0.1 - 1e-9
    assert held["gain"]["rule"] == found["routing"]
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model"]["routing"] == found["routing"]
    assert json.loads((tmp_path / "run" / "model" / "routing.json").read_text()) == found
    before = (tmp_path / "run" / "model" / "config.json").read_text()
    assert run("routing", *given[:2], "--data", tmp_path / "none", "--use", "up")[0] == 2
    assert (tmp_path / "run" / "model" / "config.json").read_text() == before
    code, out, _ = run("routing", *given, "--use", "up", "--json", "-")
    assert json.loads(out)["rules"][0]["rule"] == "up"
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model"]["routing"] == "up"
    assert not (tmp_path / "run" / "model" / "routing.json").exists()


def test_names_are_no_markup(run, world, tmp_path):
    shutil.copytree(world / "msun", tmp_path / "run[v2]")
    given = (tmp_path / "run[v2]", world / "snet", "--data", world / "photos", "--sizes", "16")
    out = tmp_path / "out[x"
    code, text, _ = run("compare", *given, "--out", out, "--device", "cpu")
    assert code == 0
    assert "run[v2]" in text
    assert f"pictures and tables in {out}" in text


def test_too_few_images_to_calibrate(run, world, tmp_path):
    folder = tmp_path / "few" / "plain disc"
    folder.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    given = ("--model", world / "msun", "--data", tmp_path / "few", "--device", "cpu")
    code, _, err = run("routing", *given, "--calibrate")
    assert code == 2
    assert "few: 1 images are too few to fit thresholds" in err


def test_compare(run, world, tmp_path):
    code, out, _ = run(
        *("compare", world / "msun", world / "vanilla", world / "snet", "--sizes", "16,48"),
        *("--data", world / "photos", "--out", tmp_path / "out", "--device", "cpu"),
    )
    assert code == 0, out
    assert "vanilla - msun" in out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(found["models"]) == ["msun", "vanilla", "snet"]
    ours, theirs = (found["models"][name]["accuracy"] for name in ("msun", "vanilla"))
    assert found["differences"][0]["at"] == pytest.approx(np.subtract(theirs, ours).tolist())
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"accuracy.png", "cost.png", "accuracy.csv", "compare.json"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "--model", "{root}/none"), "model {root}/none: no such folder"),
        (("evaluate", "--model", "{root}/empty"), "no model in it"),
        (("evaluate", "--model", "{root}/msun"), "does not say which data; give --dataset"),
        (("evaluate", "--model", "{root}/msun", "--data", "{root}/nowhere"), "no such folder"),
        (("evaluate", "--model", "{root}/msun", "--data", "{root}/empty"), "no class folders"),
        (("evaluate", "--model", "{root}/msun", "--data", "{root}/other"), "and not 'cat'"),
        (("evaluate", "--model", "{root}/msun", "{data}", "--sizes", "0:9:3"), "sizes: 0,3,6,9"),
        (("evaluate", "--model", "{root}/msun", "{data}", "--sizes", "64:16:8"), "above its end"),
        (("evaluate", "--model", "{root}/msun", "{data}", "--sizes", "9999"), "from 1 to 4096"),
        (("evaluate", "--model", "{root}/msun", "{data}", "--native", "--sizes", "16"), "--native"),
        (("evaluate", "--model", "{root}/msun", "{data}", "--resize", "native"), "one scale"),
        (
            ("evaluate", "--model", "{root}/msun", "{data}", "--part", "half"),
            "unknown value 'half'",
        ),
        (("evaluate", "--model", "{root}/torn", "{data}"), "does not hold the weights"),
        (("evaluate", "--model", "{root}/bare", "{data}"), "model.safetensors: no such file"),
        (("routing", "--model", "{root}/vanilla", "{data}"), "one scale; nothing to route"),
        (("routing", "--model", "{root}/msun", "{data}", "--budget", "0.5"), "--calibrate"),
        (
            ("routing", "--model", "{root}/msun", "{data}", "--calibrate", "--budget", "0.01"),
            "the cheapest subnet takes",
        ),
        (
            ("routing", "--model", "{root}/msun", "{data}", "--calibrate", "--budget", "2"),
            "not a share",
        ),
        (
            ("routing", "--model", "{root}/msun", "{data}", "--use", "calibrated:9"),
            "number of thresholds 1",
        ),
        (("evaluate", "--model", "{root}/vanilla", "{data}", "--subnets"), "has one scale"),
        (
            ("evaluate", "--model", "{root}/msun", "{data}", "--out", "{root}/file"),
            "file cannot be",
        ),
        (("evaluate", "--model", "{root}/begun", "{data}"), "is not over; --resume {root}/begun"),
        (("compare", "{root}/msun", "{root}/snet", "--out", "{root}/file"), "file cannot be"),
        (("compare", "{root}/msun"), "name two runs or more"),
        (("compare", "{root}/msun", "{root}/msun"), "named twice"),
        (("compare", "{root}/msun", "{root}/empty"), "no model in it"),
    ],
)
def test_errors_are_one_line(run, world, words, said):
    if not (world / "torn").exists():
        (world / "empty").mkdir()
        for i, name in enumerate(("cat", "dog")):
            (world / "other" / name).mkdir(parents=True)
            Image.new("RGB", (9, 9), (i, i, i)).save(world / "other" / name / "x.png")
        (world / "file").write_text("")
        (world / "begun").mkdir()
        (world / "begun" / "recipe.toml").write_text("")
        for name in ("torn", "bare"):
            shutil.copytree(world / "msun", world / name)
        file = world / "torn" / "model" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        (world / "bare" / "model" / "model.safetensors").unlink()
    expanded = []
    for word in words:
        given = ("--data", "{root}/photos") if word == "{data}" else (word,)
        expanded += [part.format(root=world) for part in given]
    code, _, err = run(*expanded)
    assert code == 2, err
    assert said.format(root=world) in err
    assert err.count("\n") == 1
