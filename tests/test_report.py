"""The report of a run: one page that shows itself, true to the numbers and safe with any name."""

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from msun_fastai import figures
from msun_fastai.answers import OWN, Answers, Cell
from msun_fastai.cli.report import report
from msun_fastai.data.images import load_image
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Sweep, sweep
from msun_fastai.figures.look import apart
from msun_fastai.labelled import find_images
from msun_fastai.models.saving import load_model_folder
from msun_fastai.plots import plain
from msun_fastai.report.again import TestedAgain as Again
from msun_fastai.report.again import check_run
from msun_fastai.report.folder import read_metrics, recipe_sections, training_section
from msun_fastai.report.losses import highest_losses, shown_sizes, small_picture
from msun_fastai.report.page import make_report, render
from msun_fastai.report.parts import Album
from msun_fastai.report.words import summary
from msun_fastai.routed import Routed, routed_test

SIZES, SCALES = (16, 24, 32), (16, 32)
VOID = {"meta", "img", "link", "br"}


class Page(HTMLParser):
    """A page's text, its elements with their attributes, and whether every one is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.badly = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.badly.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def made_up(n=40, classes=("a", "b", "c"), scales=SCALES, seed=0):
    """A `Sweep` and a `Routed` that no network gave."""
    rng = np.random.default_rng(seed)
    codes, native = rng.integers(0, len(classes), n), rng.integers(8, 70, n)

    def cell():
        guess = np.where(rng.random(n) < 0.6, codes, rng.integers(0, len(classes), n))
        return Cell(guess, rng.random(n).astype(np.float32))

    cells = {(size, scale): cell() for size in (OWN, *SIZES) for scale in scales}
    answers = Answers(np.arange(n), codes, native, cells)
    subnet = tuple(min(scales, key=lambda s: abs(s - size)) for size in SIZES)
    macs = {s: 1_000_000 * s for s in scales}
    costs = tuple(macs[s] for s in subnet)
    swept = Sweep(SIZES, scales, subnet, costs, 1000, answers, list(classes))
    return swept, Routed("nearest", macs, answers, list(classes))


def metrics_of(swept, **more):
    about = {"data": "d", "arch": "thin_resnet10", "method": "msun", "test_images": 1}
    figures_of = {"sizes": list(swept.sizes), "accuracy": swept.accuracy}
    return {**about, **figures_of, "subnet": list(swept.subnet), **more}


def measured_on(scales=SCALES):
    swept, routed = made_up(scales=scales)
    return Again(metrics_of(swept), swept, routed)


@pytest.fixture(scope="module", autouse=True)
def coarse():
    """Pictures of few pixels, which take less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msun_fastai.plots.DPI", 40)
        yield


@pytest.fixture(scope="module")
def reported(tmp_path_factory, saved_run, photos):
    """A finished run's folder with its report, the model, the images and what was measured."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(saved_run / "model", folder / "model")
    (folder / "recipe.toml").write_text(f'verb = "pretrain"\n[data]\npath = "{photos}"\n')
    (folder / "environment.json").write_text('{"python": "3", "packages": {"torch": "2"}}')
    (folder / "history.csv").write_text(
        "phase,epoch,train_loss,valid_loss,accuracy,acc_16,time\n"
        "1,0,2.5,2.4,0.1,0.125,00:01\n1,1,1.5,1.75,0.5,,00:01\n"
    )
    saved = load_model_folder(folder)
    samples = find_images(folder, saved).samples
    swept, routed = sweep(saved, samples, (16, 24, 32, 48, 64)), routed_test(saved, samples)
    measured = Again(metrics_of(swept), swept, routed)
    (folder / "metrics.json").write_text(json.dumps(measured.metrics))
    make_report(folder, saved, samples, measured)
    return folder, saved, samples, measured


def test_the_page_is_whole_and_needs_nothing_else(reported):
    text = (reported[0] / "report.html").read_text()
    page = Page(text)
    assert not page.badly
    assert not page.open
    assert page.all("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    assert not page.all("script")
    assert not page.all("link")
    images = page.all("img")
    assert len(images) > 10
    assert all(i["src"].startswith("data:image/") and i["alt"].strip() for i in images)
    ids = {attributes.get("id") for _, attributes in page.tags}
    links = [a["href"] for a in page.all("a")]
    assert links
    assert all(link[0] == "#" and link[1:] in ids for link in links)
    assert not re.search(r"https?://|url\(|@import", text)


def test_every_section_of_the_issue_is_there(reported):
    page = Page((reported[0] / "report.html").read_text())
    ids = [s["id"] for s in page.all("section")]
    assert ids == [
        *("accuracy", "cost", "routing", "confusion", "losses", "gradcam", "training"),
        *("recipe", "environment"),
    ]


def test_every_picture_has_its_numbers_beside_it(reported):
    files = {file.name for file in (reported[0] / "report").iterdir()}
    pictures = {name for name in files if name.endswith(".png")}
    assert len(pictures) == 8
    for picture in pictures:
        stem = picture.removesuffix(".png")
        assert {f"{stem}.csv", f"{stem}.json"} & files, picture
    with (reported[0] / "report" / "accuracy.csv").open() as file:
        rows = list(csv.DictReader(file))
    swept = reported[3].sweep
    assert [float(row["accuracy"]) for row in rows] == swept.accuracy
    assert [int(row["macs"]) for row in rows] == list(swept.macs)


def test_the_verb_writes_the_same_bytes_again(reported, tmp_path, capsys):
    folder, _, _, measured = reported
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    shutil.rmtree(copy / "report")
    (copy / "report.html").unlink()
    report(str(copy), device="cpu", json_file="-")
    for file in (folder / "report.html", *(folder / "report").iterdir()):
        assert (copy / file.relative_to(folder)).read_bytes() == file.read_bytes(), file
    out = capsys.readouterr()
    said = json.loads(out.out)
    assert said["report"] == str(copy / "report.html")
    assert said["summary"] == summary(measured)
    assert said["summary"] in out.err


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("metrics.json", "is not over; --resume"),
        ("recipe.toml", "holds no run"),
        ("model", "no model in it"),
        ("model/model.safetensors", "no such file"),
        ("", "--data-root"),
    ],
)
def test_the_verb_says_what_is_missing(reported, tmp_path, gone, words):
    copy = tmp_path / "run"
    shutil.copytree(reported[0], copy, ignore=shutil.ignore_patterns("report"))
    before = (copy / "report.html").read_bytes()
    if not gone:
        text = (copy / "recipe.toml").read_text()
        (copy / "recipe.toml").write_text(text.replace("photos", "gone"))
    elif (copy / gone).is_dir():
        shutil.rmtree(copy / gone)
    else:
        (copy / gone).unlink()
    with pytest.raises(UserError, match=words) as raised:
        report(str(copy), device="cpu")
    assert ("gone" if not gone else str(copy)) in str(raised.value)
    assert (copy / "report.html").read_bytes() == before


def test_names_are_text_and_nothing_else(reported, tmp_path):
    _, saved, samples, measured = reported
    names = ["<script>alert(1)</script>", '"><img src=x onerror=y>', r"$\frac$", "_a", "b\udcff"]
    classes = [*names, *(f"c{i}" for i in range(5))]
    place = tmp_path / "a" / 'f"<b>\udcff.png'
    place.parent.mkdir()
    load_image(samples[0].image).save(place.parent / "plain.png")
    (place.parent / "plain.png").rename(place)
    images = [Sample(place, classes[0]) for _ in samples]
    named = replace(saved, classes=classes)
    swept, routed = (replace(of, classes=classes) for of in (measured.sweep, measured.routed))
    metrics = metrics_of(swept, data="<i>d</i>")
    text = make_report(tmp_path, named, images, Again(metrics, swept, routed)).read_text()
    page = Page(text)
    assert not page.badly
    assert not page.all("script")
    assert not page.all("b") or all(not a for a in page.all("b"))
    assert all("onerror" not in a for _, a in page.tags)
    shown = "".join(page.text)
    assert "<script>alert(1)</script>" in shown
    assert 'a/f"<b>\\udcff.png' in shown
    assert "<i>d</i>" in shown


def test_a_stream_leaves_the_images_out(reported, tmp_path):
    _, saved, samples, measured = reported
    page = Page(make_report(tmp_path, saved, iter(samples), measured).read_text())
    assert not (tmp_path / "report" / "gradcam.png").exists()
    assert "".join(page.text).count("as a stream") == 2
    assert {s["id"] for s in page.all("section")} == {
        *("accuracy", "cost", "routing", "confusion", "losses", "gradcam")
    }


def test_a_probe_shows_its_strengths(tmp_path):
    assert training_section(tmp_path, Album(tmp_path)) is None
    heads = [{"scales": [16, 32], "table": [{"strength": 0.25, "accuracy": 0.75}]}]
    (tmp_path / "probe.json").write_text(json.dumps({"heads": heads}))
    section = training_section(tmp_path, Album(tmp_path))
    page = render(measured_on(), "", [section])
    assert section.tables[0].rows == [["16, 32", "0.25", "75.0 %"]]
    assert "Strengths of the probe" in page


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("history.csv", "phase,epoch,train_loss\n1,0,oops\n"),
        ("history.csv", "phase,epoch,train_loss\n1,0,1,2,3\n1\n"),
        ("probe.json", "[1]"),
        ("environment.json", "{"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=f"{file}: damaged"):
        (training_section(tmp_path, Album(tmp_path)), recipe_sections(tmp_path))


def test_the_highest_losses_come_first(reported):
    _, _, samples, measured = reported
    swept = measured.sweep
    assert shown_sizes(swept) == [16, 32, 64]
    for size, cards in zip((16, 32, 64), highest_losses(swept, samples, 3)):
        loss = swept.loss[:, swept.sizes.index(size)]
        assert [card.loss for card in cards] == pytest.approx(sorted(loss)[::-1][:3])
        for card in cards:
            row = int(np.flatnonzero(loss == card.loss)[0])
            assert card.true == samples[int(swept.answers.images[row])].label
            assert card.uri.startswith("data:image/jpeg")


def test_losses_that_are_no_number_and_images_that_are_gone(tmp_path):
    swept, _ = made_up()
    swept.answers.cells[16, 16].loss[7] = np.nan
    samples = [Sample(tmp_path / "gone.png", "a")] * 40
    cards = highest_losses(swept, samples, 2)[0]
    assert np.isnan(cards[0].loss)
    assert cards[0].native == swept.answers.native[7]
    assert {card.uri for card in cards} == {""}


def test_small_pictures_are_small():
    wide = np.zeros((40, 3000, 3), dtype=np.uint8)
    uri, picture = small_picture(wide)
    assert picture.size == (160, 2)
    assert len(uri) < 5000


def test_a_network_of_one_scale_shows_the_ends_and_saves_nothing():
    one = measured_on(scales=(32,))
    assert shown_sizes(one.sweep) == [16, 32]
    assert "cost as much as large ones" in summary(one)
    assert "less computation" not in summary(one)


def test_the_summary_has_the_figures():
    of = measured_on()
    told, swept = summary(of), of.sweep
    for share in (swept.mean_accuracy, swept.accuracy[0], swept.accuracy[-1], of.routed.accuracy):
        assert f"{100 * share:.1f} %" in told
    low, high = swept.intervals()[1]
    assert f"{100 * low:.1f} to {100 * high:.1f}" in told
    assert f"{100 * of.routed.saving:.1f} % less computation than with all of them at 32" in told


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (0.0, "as much as msun"),
        (0.3, "30.0 points more than msun"),
        (-0.3, "30.0 points less than msun"),
        (0.01, "which is within the 95 % interval of msun"),
    ],
)
def test_the_summary_is_honest_about_the_baseline(points, words):
    of = measured_on()
    accuracy = [a + points for a in of.sweep.accuracy]
    baseline = {**metrics_of(of.sweep), "method": "vanilla", "accuracy": accuracy}
    of.metrics["baseline"] = {**baseline, "macs": [2 * m for m in of.sweep.macs]}
    told = summary(of)
    assert words in told
    assert ("interval of msun" in told) == (points == 0.01)
    assert "it takes 100.0 % more computation" in told
    of.metrics["baseline"]["sizes"] = [8, 16, 32]
    assert "at other sizes" in summary(of)


def test_rows_are_what_the_sweeps_say():
    swept, routed = made_up()
    rows = figures.accuracy_rows({"a": swept, "b": swept})
    assert [row["accuracy"] for row in rows] == swept.accuracy * 2
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in rows)
    mean = [row for row in figures.cost_rows(rows) if row["size"] == "mean"]
    assert [row["accuracy"] for row in mean] == pytest.approx([swept.mean_accuracy] * 2)
    assert [row["macs"] for row in mean] == pytest.approx([swept.mean_macs] * 2)
    bins = figures.routing_rows(routed)
    assert sum(row["images"] for row in bins) == 40
    assert sum(row["subnet_16"] for row in bins) == routed.counts[16]
    cells = figures.matrix_rows(swept)
    assert len(cells) == len(SIZES) * len(SCALES)
    routed_to = {row["size"]: row["subnet"] for row in cells if row["routed"]}
    assert routed_to == dict(zip(SIZES, swept.subnet))


def test_confusions_are_counted_and_ranked():
    codes, predicted = [0, 0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 2, -1]
    rows = figures.confusion_rows(codes, predicted, "abc")
    assert {(r["true"], r["predicted"]): r["images"] for r in rows} == {
        ("a", "a"): 1, ("a", "b"): 2, ("b", "a"): 1, ("b", "b"): 1, ("c", "c"): 1,
    }  # fmt: skip
    worst = figures.most_confused(codes, predicted, "abc", 5)
    assert [(r["true"], r["predicted"]) for r in worst] == [("a", "b"), ("b", "a")]
    assert worst[0]["share"] == pytest.approx(2 / 3)
    assert figures.shown_classes(rows, "abcd", 2) == ["a", "b"]
    assert figures.shown_classes(rows, "abcd") == ["a", "b", "c"]


def test_a_matrix_needs_every_subnet():
    swept, _ = made_up()
    del swept.answers.cells[16, 32]
    assert figures.matrix_rows(swept) == []
    with pytest.raises(ValueError, match="every subnet"):
        figures.plot_matrix(swept)


def test_pictures_have_a_line_and_a_marker_a_model():
    swept, _ = made_up()
    axes = figures.plot_accuracy({"_a $b": swept, "c": swept}).axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() != "None"]
    assert len({(line.get_marker(), line.get_color()) for line in lines}) == 2
    assert [list(line.get_xdata()) for line in lines] == [list(SIZES)] * 2
    assert lines[0].get_ydata() == pytest.approx([100 * a for a in swept.accuracy])
    assert lines[0].get_label() == r" _a \$b"
    stars = [li for li in figures.plot_cost({"a": swept}).axes[0].lines if li.get_marker() == "*"]
    assert float(stars[0].get_ydata()[0]) == pytest.approx(100 * swept.mean_accuracy)


def test_images_stand_in_rows(tmp_path):
    square = Sample(np.zeros((30, 30, 3), dtype=np.uint8), "a")
    gone = Sample(tmp_path / "gone.png", "b")
    figure = figures.plot_images([(square, "$x", 1.5), (gone, "a", 2.0)] * 2)
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [len(axes.images) for axes in shown] == [1, 0, 1, 0]
    assert shown[0].get_title() == "loss 1.50\na\nas \\$x"
    with pytest.raises(ValueError, match="no image"):
        figures.plot_images([])


def test_names_and_ticks_of_pictures():
    assert plain("$x") == r"\$x"
    assert plain("a" * 30, 10) == "a" * 9 + "…"
    assert plain("b\udcff\n") == "b\\udcff\N{REPLACEMENT CHARACTER}"
    assert apart([1, 2, 3, 50, 99, 100]) == [1, 50, 100]
    assert apart([32]) == [32]


def test_metrics_are_checked(tmp_path):
    swept, _ = made_up()
    good = metrics_of(swept)
    (tmp_path / "recipe.toml").write_text("")
    with pytest.raises(UserError, match="not over"):
        check_run(tmp_path)
    for bad in (
        "{", "[]", "{}", json.dumps({**good, "sizes": [3, 2, 1]}),
        json.dumps({**good, "accuracy": [1]}), json.dumps({**good, "baseline": {"method": "v"}}),
    ):  # fmt: skip
        (tmp_path / "metrics.json").write_text(bad)
        with pytest.raises(UserError, match=r"metrics\.json: damaged"):
            read_metrics(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(good))
    assert check_run(tmp_path) == good


def test_runs_that_are_none(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        check_run(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no run"):
        check_run(tmp_path)
