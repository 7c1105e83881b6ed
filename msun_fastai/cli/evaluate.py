"""`msun-fastai evaluate`: a trained model at every input size, or at the images' own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import (
    Batch,
    DataName,
    DataPath,
    DataRoot,
    Device,
    Json,
    Limit,
    Part,
    Text,
    Workers,
)

if TYPE_CHECKING:
    from msun_fastai.evaluate import Sweep
    from msun_fastai.routed import Routed


def evaluate(
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    sizes: Annotated[
        Text,
        typer.Option(help="Input sizes, 32:224:16 or 32,128; 13 over the scales by default."),
    ] = None,
    native: Annotated[
        bool, typer.Option("--native", help="Test images at their own sizes, through the routing.")
    ] = False,
    subnets: Annotated[
        bool, typer.Option("--subnets", help="Test every subnet at every size (Table IV).")
    ] = False,
    resize: Annotated[
        str,
        typer.Option(
            help="canonical; native: run the network at the size itself (Table I; for san its "
            "proxy inference); ideal: san's data-free ideal inference."
        ),
    ] = "canonical",
    limit: Limit = None,
    part: Part = "measured",
    seed: Annotated[int, typer.Option(help="Which images --limit takes.")] = 42,
    bs: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    out: Annotated[Text, typer.Option("--out", help="Folder for pictures and tables.")] = None,
    json_file: Json = None,
) -> None:
    """Test a trained model: accuracy, subnet and cost at every input size, with 95 % intervals."""
    from msun_fastai.cli.output import check_folder, check_output, make_console, say, write_result
    from msun_fastai.cli.testing import images_of, open_run, progress, tested_title
    from msun_fastai.errors import UserError
    from msun_fastai.scales import parse_sizes, sweep_sizes

    check_output("--json", json_file)
    check_folder("--out", out)
    tested = parse_sizes(sizes) if sizes is not None else None
    if native and (tested is not None or subnets or resize != "canonical"):
        raise UserError("--native: takes images at their own sizes; leave --sizes and the like out")
    if subnets and resize != "canonical":
        raise UserError(f"--resize {resize}: is for networks without subnets; leave --subnets out")
    console = make_console(json_file)
    saved = open_run(model, device)
    choice = {"dataset": dataset, "data": data, "root": data_root}
    found = images_of(model, saved, console, **choice, limit=limit, part=part, seed=seed)
    if subnets and len(saved.model.entry_scales) == 1:
        raise UserError(f"--subnets: {saved.model.config.method} has one scale, and no subnets")
    with progress(console, "images", len(found.samples)) as told:
        if native:
            from msun_fastai.routed import routed_test

            routed = routed_test(saved, found.samples, bs=bs, workers=workers, told=told)
        else:
            from msun_fastai.evaluate import sweep

            scales = saved.model.config.scales
            sides = tested or sweep_sizes(scales[0], scales[-1])
            swept = sweep(saved, found.samples, sides, subnets, resize, bs, workers, told)
    if native:
        show_routed(console, tested_title(found, routed.answers), routed)
        result = routed.as_dict()
    else:
        show_sweep(console, tested_title(found, swept.answers), swept)
        result = swept.as_dict()
    if out is not None:
        folder = write_routed(routed, out) if native else write_sweep(swept, model, out)
        say(console, f"pictures and tables in {folder}")
    about = {"model": model, "data": found.name, "part": found.part}
    write_result({**about, **result}, json_file)


def show_sweep(console: Any, title: str, swept: Sweep) -> None:
    """Accuracy, subnet and cost at every size, the means, and the subnets' matrix."""
    from msun_fastai.cli.output import print_table, say
    from msun_fastai.cli.testing import between, billions, percent

    figures = swept.as_dict()
    rows = [
        [size, subnet, percent(accuracy), between(ends), billions(macs)]
        for size, subnet, accuracy, ends, macs in zip(
            *(figures[key] for key in ("sizes", "subnet", "accuracy", "interval", "macs"))
        )
    ]
    ends = between(figures["mean_interval"])
    rows.append(["mean", "", percent(swept.mean_accuracy), ends, billions(swept.mean_macs)])
    print_table(console, title, ["size", "subnet", "accuracy", "95 % interval", "MACs (G)"], rows)
    if "matrix" in figures:
        columns = ["size", *(f"subnet {scale}" for scale in swept.scales)]
        matrix = swept.matrix()
        assert matrix is not None
        cells = [[size, *map(percent, row)] for size, row in zip(swept.sizes, matrix.tolist())]
        print_table(console, "accuracy of every subnet at every size", columns, cells)
    speed = figures["images_per_second"]
    told = f"{swept.params / 1e6:.2f}M parameters"
    if speed:
        each = "one size" if len(swept.sizes) == 1 else f"{len(swept.sizes)} sizes"
        told += f"; {speed:,.0f} images a second, each at {each}"
    say(console, told)


def show_routed(console: Any, title: str, routed: Routed) -> None:
    """Accuracy at the images' own sizes, by subnet and by native size, and what that saves."""
    from msun_fastai.cli.output import print_table, say
    from msun_fastai.cli.testing import between, billions, percent

    say(
        console,
        f"{title}, at their own sizes, routing {routed.rule}: {percent(routed.accuracy)} "
        f"({between(routed.interval())})",
    )
    rows = [
        [row["subnet"], row["images"], percent(row["accuracy"]), billions(row["macs"])]
        for row in routed.by_subnet()
    ]
    print_table(console, "", ["subnet", "images", "accuracy", "MACs (G)"], rows)
    bins = [
        [
            f"{row['above'] + 1} to {row['up_to']}",
            row["images"],
            percent(row["accuracy"]),
            ", ".join(f"{scale}: {n}" for scale, n in row["subnets"].items()),
        ]
        for row in routed.by_native_size()
    ]
    print_table(console, "", ["native size", "images", "accuracy", "subnets"], bins)
    say(console, saving_line(routed))


def saving_line(routed: Routed) -> str:
    """What the routing costs, in a line."""
    from msun_fastai.cli.testing import billions

    mean = f"an image takes {billions(routed.mean_macs)} G MACs in the mean"
    if len(routed.scales) == 1:
        return f"{mean}; a network of one scale has nothing to route"
    return f"{mean}, {100 * routed.saving:.1f} % less than all of them at {routed.scales[-1]}"


def write_sweep(swept: Sweep, model: str, out: str) -> Path:
    """The curves (and the matrix) as PNG, the numbers as CSV and JSON, in the folder `out`."""
    from msun_fastai import figures
    from msun_fastai.compare import names_of
    from msun_fastai.files import write_json, write_rows
    from msun_fastai.plots import save_figure
    from msun_fastai.runfolder import new_run_folder

    folder, named = new_run_folder("evaluate", out), {names_of([model])[0]: swept}
    save_figure(figures.plot_accuracy(named), folder / "accuracy.png")
    save_figure(figures.plot_cost(named), folder / "cost.png")
    if swept.matrix() is not None and len(swept.scales) > 1:
        save_figure(figures.plot_matrix(swept), folder / "subnets.png")
    write_rows(folder / "accuracy.csv", figures.accuracy_rows(named))
    write_json(folder / "evaluate.json", swept.as_dict())
    return folder


def write_routed(routed: Routed, out: str) -> Path:
    """The histogram of native sizes as PNG, its numbers as CSV and JSON, in the folder `out`."""
    from msun_fastai import figures
    from msun_fastai.files import write_json, write_rows
    from msun_fastai.plots import save_figure
    from msun_fastai.runfolder import new_run_folder

    folder = new_run_folder("evaluate", out)
    save_figure(figures.plot_routing(routed), folder / "routing.png")
    write_rows(folder / "routing.csv", figures.routing_rows(routed))
    write_json(folder / "routing.json", routed.as_dict())
    return folder
