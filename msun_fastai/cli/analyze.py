"""`msun-fastai analyze`: what trained models make of images, by size and by depth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import (
    DataName,
    DataPath,
    DataRoot,
    Device,
    Json,
    Limit,
    OutDir,
    Part,
    Text,
    Workers,
)

if TYPE_CHECKING:
    from rich.console import Console

    from msun_fastai.models.saving import SavedModel

Runs = Annotated[
    list[str],
    typer.Argument(help="Run folders; the first one's data and scales.", metavar="RUN..."),
]
Sizes = Annotated[
    Text, typer.Option(help="Image sizes, such as 32,128,224; the first run's scales by default.")
]
Resize = Annotated[
    str,
    typer.Option(
        help="canonical: to the scale that the routing gives (Table II). native: the network runs "
        "at the size itself, for vanilla, mst, rsnet and san (Table I); ideal: of rsnet and san a "
        "network made for the size."
    ),
]

analyze = typer.Typer(
    name="analyze",
    help="Compare what models make of the same images: features, attention, by size and depth.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@analyze.command()
def cka(
    runs: Runs,
    sizes: Annotated[
        Text, typer.Option(help="Two sizes; the first run's smallest and largest scale by default.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Estimate CKA from batches of so many images, which are forgotten at once; exact "
            "by default. Within 0.01 of exact from 2000 images in batches of 128, mostly from "
            "1000 in batches of 64.",
            min=4,
        ),
    ] = None,
    limit: Limit = 200,
    resize: Resize = "canonical",
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    part: Part = "measured",
    workers: Workers = 0,
    device: Device = None,
    out: OutDir = None,
    json_file: Json = None,
) -> None:
    """Layer-wise CKA of the features of two sizes (Eq. 2, Figure 2): 1 where they are alike."""
    console, names, models, sides = _begin(runs, sizes, device, out, json_file, ends=True)

    from msun_fastai.analysis.layer_cka import layer_cka
    from msun_fastai.analysis.plots import plot_cka
    from msun_fastai.cli.output import print_table
    from msun_fastai.cli.testing import images_of, progress

    choice = {"dataset": dataset, "data": data, "root": data_root, "part": part, "limit": limit}
    samples = images_of(runs[0], models[0], console, **choice).samples
    results = []
    for name, saved in zip(names, models):
        with progress(console, name, len(samples)) as tell:
            results.append(
                layer_cka(saved, samples, sides, batch, resize, name, workers, tell=tell)
            )
    how = f"mini-batches of {batch}" if batch else "exact"
    title = f"CKA between {sides[0]} and {sides[1]} pixels, {results[0].images} images, {how}"
    subnets = [" and ".join(map(str, r.sides)) for r in results]
    layers = max((list(r.values) for r in results), key=len)
    table = [
        [r.name, at, *(_number(r.values.get(x)) for x in layers)] for r, at in zip(results, subnets)
    ]
    print_table(console, title, ["model", "subnets", *layers], table)
    folder = _write("cka", results, {"cka": plot_cka(results)}, out)
    _end(console, folder, results, json_file)


@analyze.command()
def gradcam(
    runs: Runs,
    image: Annotated[
        list[str] | None,
        typer.Option(help="An image file, folder or glob; again for more. Random ones by default."),
    ] = None,
    count: Annotated[int, typer.Option(help="How many random images.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Which random images.")] = 42,
    sizes: Sizes = None,
    target: Annotated[
        Text,
        typer.Option(
            "--class", help="The class to look for; by default the answer at the largest size."
        ),
    ] = None,
    resize: Resize = "canonical",
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    part: Part = "measured",
    workers: Workers = 0,
    device: Device = None,
    out: OutDir = None,
    json_file: Json = None,
) -> None:
    """Where each model looks at several sizes (Eq. 9, Figure 7), and how alike that is.

    The likeness is the correlation of the maps of two sizes; over all pairs of sizes it is of the
    images whose maps have one at all of them.
    """
    console, names, models, sides = _begin(runs, sizes, device, out, json_file)

    from msun_fastai.analysis.plots import plot_gradcam
    from msun_fastai.analysis.size_cams import size_cams
    from msun_fastai.cli.output import print_table
    from msun_fastai.cli.testing import images_of, progress
    from msun_fastai.data.inputs import expand_paths
    from msun_fastai.data.samples import Sample

    if image:
        samples = [Sample(file, "") for file in expand_paths(image)]
    else:
        choice = {"dataset": dataset, "data": data, "root": data_root, "part": part}
        found = images_of(runs[0], models[0], console, limit=count, seed=seed, **choice)
        samples = found.samples
    results = []
    for name, saved in zip(names, models):
        with progress(console, name, len(samples)) as tell:
            results.append(size_cams(saved, samples, sides, target, resize, name, workers, tell))
    table = []
    for r in results:
        pairs = [(f"{a}, {b}", r.mean_likeness((a, b))) for a, b in r.alike]
        for what, (mean, n) in [*pairs, ("all pairs", r.mean_likeness())]:
            table.append([r.name, what, _number(mean), f"{n} of {len(r.images)}"])
    title = "likeness of Grad-CAM maps across sizes"
    print_table(console, title, ["model", "sizes", "likeness", "images with a number"], table)
    labels = ["gradcam"] if len(results) == 1 else [f"gradcam-{_file_name(n)}" for n in names]
    figures = {label: plot_gradcam(r) for label, r in zip(labels, results)}
    _end(console, _write("gradcam", results, figures, out), results, json_file)


@analyze.command()
def pca(
    runs: Runs,
    classes: Annotated[
        Text, typer.Option(help="Class names with commas; the 5 with most images by default.")
    ] = None,
    sizes: Sizes = None,
    limit: Limit = 250,
    resize: Resize = "canonical",
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    part: Part = "measured",
    workers: Workers = 0,
    device: Device = None,
    out: OutDir = None,
    json_file: Json = None,
) -> None:
    """Features of some classes at several sizes in one projection (Figure 8).

    The separation is the mean silhouette of the classes, from -1 to 1: larger where they are apart.
    """
    console, names, models, sides = _begin(runs, sizes, device, out, json_file)

    from msun_fastai.analysis.pca import choose_classes
    from msun_fastai.analysis.plots import plot_pca
    from msun_fastai.analysis.size_pca import size_pca
    from msun_fastai.cli.output import print_table, say
    from msun_fastai.cli.testing import images_of, progress
    from msun_fastai.data.samples import take_evenly

    choice = {"dataset": dataset, "data": data, "root": data_root, "part": part}
    samples = images_of(runs[0], models[0], console, **choice).samples
    given = None if classes is None else [name.strip() for name in classes.split(",")]
    chosen = choose_classes(samples, given)
    samples = [sample for sample in samples if sample.label in chosen]
    samples = take_evenly(samples, limit or len(samples), seed=42)
    results = []
    for name, saved in zip(names, models):
        with progress(console, name, len(samples)) as tell:
            results.append(size_pca(saved, samples, sides, resize, name, workers, tell))
    scores = [(r.name, row) for r in results for row in r.as_dict()["sizes"]]
    table = [
        [name, s["size"], s["subnet"], _number(s["separation"]), _number(s["separation_2d"])]
        for name, s in scores
    ]
    title = f"separation of {', '.join(chosen)} ({len(samples)} images)"
    columns = ["model", "size", "subnet", "separation", "in the plane"]
    print_table(console, title, columns, table)
    for r in results:
        shares = " and ".join(f"{100 * share:.1f} %" for share in r.projection.explained)
        say(console, f"{r.name}: the axes hold {shares} of the variance")
        for note in r.notes:
            say(console, note)
    _end(console, _write("pca", results, {"pca": plot_pca(results)}, out), results, json_file)


@analyze.command()
def depth(
    runs: Runs,
    size: Annotated[
        int | None, typer.Option(help="Image size; the first run's largest scale by default.")
    ] = None,
    limit: Annotated[
        int, typer.Option(help="Fit on and test on at most so many images each.", min=1)
    ] = 2000,
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    part: Part = "measured",
    workers: Workers = 0,
    device: Device = None,
    out: OutDir = None,
    json_file: Json = None,
) -> None:
    """Accuracy by depth: linear classifiers on every block (ScaleNet's Figure 6).

    They are fitted on the training part. Of a ScaleNet they see each block's smallest feature map,
    of other networks the stem's and each stage's, averaged over the grid.
    """
    sizes = None if size is None else str(size)
    console, names, models, sides = _begin(runs, sizes, device, out, json_file, least=1)

    from msun_fastai.analysis.depth import MAIN, depth_accuracy
    from msun_fastai.analysis.plots import plot_depth
    from msun_fastai.cli.output import print_table, say
    from msun_fastai.cli.testing import images_of, percent, progress
    from msun_fastai.labelled import find_images

    choice: dict[str, Any] = {"dataset": dataset, "data": data, "root": data_root, "limit": limit}
    test = images_of(runs[0], models[0], console, part=part, **choice).samples
    train = find_images(runs[0], models[0], part="train", **choice).samples
    results = []
    for name, saved in zip(names, models):
        with progress(console, name, len(train) + len(test)) as tell:
            results.append(depth_accuracy(saved, train, test, sides[-1], name, workers, tell=tell))
    table = [
        [r.name, *row]
        for r in results
        for row in [(b.name, percent(b.accuracy)) for b in r.blocks] + [(MAIN, percent(r.main))]
    ]
    fitted, tested = results[0].images
    title = f"accuracy by depth at {sides[-1]} pixels ({fitted} images to fit on, {tested} to test)"
    print_table(console, title, ["model", "layer", "accuracy"], table)
    for note in (f"{r.name}: {note}" for r in results for note in r.notes):
        say(console, note)
    _end(console, _write("depth", results, {"depth": plot_depth(results)}, out), results, json_file)


def _begin(
    runs: list[str],
    sizes: str | None,
    device: str | None,
    out: str | None,
    json_file: str | None,
    ends: bool = False,
    least: int = 2,
) -> tuple[Console, list[str], list[SavedModel], tuple[int, ...]]:
    """The console, the models with their names, and the sizes; ends: by default the outer two.

    least: how many scales the first one has to have for its own to be the default.
    """
    from msun_fastai.cli.output import check_output, make_console
    from msun_fastai.compare import names_of
    from msun_fastai.errors import UserError
    from msun_fastai.scales import parse_sizes

    check_output("--json", json_file)
    if out is not None:  # what is written comes into it
        check_output("--out", str(Path(out) / "analysis"))
    given = None if sizes is None else parse_sizes(sizes)

    from msun_fastai.cli.testing import open_run

    models = [open_run(run, device) for run in runs]
    if given is None:
        given = models[0].model.config.scales
        if len(given) < least:
            raise UserError(f"{runs[0]}: has one scale; name sizes to compare with --sizes")
        given = (given[0], given[-1]) if ends else given
    return make_console(json_file), names_of(runs), models, given


def _write(verb: str, results: list[Any], figures: dict[str, Any], out: str | None) -> Path:
    """Pictures, and their numbers as JSON and CSV beside them; returns the folder."""
    from msun_fastai.files import write_json, write_rows
    from msun_fastai.plots import save_figure
    from msun_fastai.runfolder import new_run_folder

    folder = new_run_folder(verb, out)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    write_json(folder / f"{verb}.json", [result.as_dict() for result in results])
    write_rows(folder / f"{verb}.csv", [row for result in results for row in result.rows()])
    return folder


def _end(console: Console, folder: Path, results: list[Any], json_file: str | None) -> None:
    from msun_fastai.cli.output import say, write_result

    unreadable = results[0].unreadable
    if unreadable:
        say(
            console,
            f"left out as they could not be read: {len(unreadable)}, such as {unreadable[0]}",
        )
    say(console, f"pictures and tables in {folder}")
    write_result([result.as_dict() for result in results], json_file)


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-")
