"""`msun-fastai compare`: trained models beside each other on the same images."""

from __future__ import annotations

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
    OutDir,
    Part,
    Text,
    Workers,
)

if TYPE_CHECKING:
    from msun_fastai.compare import Difference
    from msun_fastai.evaluate import Sweep


def compare(
    runs: Annotated[
        list[str], typer.Argument(help="Run or model folders, two or more.", metavar="RUN RUN...")
    ],
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    sizes: Annotated[
        Text,
        typer.Option(help="Input sizes, 32:224:16 or 32,128; 13 over all scales by default."),
    ] = None,
    limit: Limit = None,
    part: Part = "measured",
    seed: Annotated[int, typer.Option(help="Which images --limit takes.")] = 42,
    bs: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    out: OutDir = None,
    json_file: Json = None,
) -> None:
    """Test several models on the same images, the first one's own by default: accuracy and cost at
    every size, and differences from the first with paired intervals."""
    from msun_fastai.cli.output import check_folder, check_output, make_console, say, write_result
    from msun_fastai.cli.testing import images_of, open_run, progress, tested_title
    from msun_fastai.compare import differences, names_of
    from msun_fastai.errors import UserError
    from msun_fastai.evaluate import sweep
    from msun_fastai.labelled import check_classes
    from msun_fastai.runfolder import new_run_folder
    from msun_fastai.scales import parse_sizes, sweep_sizes

    check_output("--json", json_file)
    check_folder("--out", out)
    if len(runs) < 2:
        raise UserError("compare: name two runs or more; `msun-fastai evaluate` tests one")
    tested = parse_sizes(sizes) if sizes is not None else None
    console, names = make_console(json_file), names_of(runs)
    models = dict(zip(names, (open_run(run, device) for run in runs)))
    choice = {"dataset": dataset, "data": data, "root": data_root}
    first = models[names[0]]
    found = images_of(runs[0], first, console, **choice, limit=limit, part=part, seed=seed)
    for saved in models.values():
        check_classes(found.source, saved.classes)
    sides = [s for saved in models.values() for s in saved.model.config.scales]
    at = tested or sweep_sizes(min(sides), max(sides))
    sweeps = {}
    for name, saved in models.items():
        with progress(console, name, len(found.samples)) as told:
            sweeps[name] = sweep(saved, found.samples, at, bs=bs, workers=workers, told=told)
    apart = differences(sweeps)
    show(console, tested_title(found, sweeps[names[0]].answers), sweeps, apart)
    folder = new_run_folder("compare", out)
    result = {
        "data": found.name,
        "part": found.part,
        "runs": dict(zip(names, runs)),
        "models": {name: swept.as_dict() for name, swept in sweeps.items()},
        "differences": [one.as_dict() for one in apart],
    }
    write(folder, sweeps, result)
    say(console, f"pictures and tables in {folder}")
    write_result(result, json_file)


def show(console: Any, title: str, sweeps: dict[str, Sweep], apart: list[Difference]) -> None:
    """One row a size: the accuracies, and what the others have over the first."""
    from msun_fastai.cli.output import print_table
    from msun_fastai.cli.testing import billions, percent, points

    first = next(iter(sweeps.values()))
    columns = ["size", *sweeps, *(f"{one.name} - {one.than}" for one in apart)]
    rows = []
    for i, size in enumerate(first.sizes):
        row = [size, *(percent(swept.accuracy[i]) for swept in sweeps.values())]
        rows.append([*row, *(points(one.at[i], one.intervals[i]) for one in apart)])
    means = [percent(swept.mean_accuracy) for swept in sweeps.values()]
    rows.append(["mean", *means, *(points(one.mean, one.mean_interval) for one in apart)])
    print_table(console, title, columns, rows)
    costs = [
        [name, swept.resize, billions(swept.mean_macs), f"{swept.params / 1e6:.2f}"]
        for name, swept in sweeps.items()
    ]
    heads = ["model", "resize", "mean MACs (G)", "parameters (M)"]
    print_table(console, "", heads, costs)


def write(folder: Any, sweeps: dict[str, Sweep], result: dict[str, Any]) -> None:
    """The curves as PNG, the numbers as CSV and JSON, in `folder`."""
    from msun_fastai import figures
    from msun_fastai.files import write_json, write_rows
    from msun_fastai.plots import save_figure

    save_figure(figures.plot_accuracy(sweeps), folder / "accuracy.png")
    save_figure(figures.plot_cost(sweeps), folder / "cost.png")
    write_rows(folder / "accuracy.csv", figures.accuracy_rows(sweeps))
    write_json(folder / "compare.json", result)
