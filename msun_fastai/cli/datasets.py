"""`msun-fastai datasets`: what is known by name, what of it is here, and how it would be routed."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from msun_fastai.cli.options import ROUTING, SCALES, DataRoot, Json, Text

BAR = 40  # characters of the longest bar

datasets = typer.Typer(
    name="datasets",
    help="List the datasets that go by a name, describe one, fetch one.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@datasets.callback()
def list_all(ctx: typer.Context, data_root: DataRoot = None, json_file: Json = None) -> None:
    """List the datasets that go by a name, and where copies of them are."""
    if ctx.invoked_subcommand is not None:
        return
    from msun_fastai.cli.output import check_output, make_console, print_table, write_result
    from msun_fastai.data.describe import list_datasets

    check_output("--json", json_file)
    rows = list_datasets(data_root)
    columns = ["name", "classes", "images", "sides", "licence", "here"]
    cells = [[row[c] for c in columns] for row in rows]
    console = make_console(json_file)
    print_table(console, "datasets (shapes and digits need no files)", columns, cells)
    write_result(rows, json_file)


@datasets.command()
def info(
    name: Annotated[str, typer.Argument(help="A dataset by name.")],
    data_root: DataRoot = None,
    scales: Annotated[str, SCALES] = "S3",
    routing: Annotated[str, ROUTING] = "nearest",
    json_file: Json = None,
) -> None:
    """Describe a dataset: splits, licence, native sizes, and how its images would be routed."""
    from msun_fastai import scales as rules
    from msun_fastai.cli.output import check_output, make_console, write_result

    check_output("--json", json_file)
    sides = rules.parse_scales(scales)
    rules.thresholds(sides, routing)

    from msun_fastai.data.describe import describe

    found = describe(name, data_root, sides, routing)
    console = make_console(json_file)
    for line in info_lines(found):
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    write_result(found, json_file)


@datasets.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A dataset by name.")],
    data_root: DataRoot = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fewer images than there should be are an error.")
    ] = False,
    hub_id: Annotated[str, typer.Option(help="Another repository on the hub.")] = "",
    revision: Annotated[str, typer.Option(help="Another state of it: branch, tag, commit.")] = "",
    json_file: Json = None,
) -> None:
    """Fetch a dataset from the hub unless it is here, and check what is here."""
    from msun_fastai.cli.output import check_output, make_console, write_result
    from msun_fastai.data.describe import prepare as prepare_dataset

    check_output("--json", json_file)
    found = prepare_dataset(name, data_root, strict, hub_id, revision)
    console = make_console(json_file)
    parts = ", ".join(f"{n:,} to {_purpose(part)}" for part, n in found["parts"].items())
    lines = [f"{name}: {found['layout']} {found['folder']}", f"{found['classes']} classes, {parts}"]
    for line in [*lines, *found["notes"]]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    write_result(found, json_file)


@datasets.command()
def scan(
    dataset: Annotated[Text, typer.Option(help="Dataset by name.")] = None,
    data: Annotated[
        Text, typer.Option(help="Folder of class folders, or a CSV of paths and labels.")
    ] = None,
    data_root: DataRoot = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every image, which finds what headers hide.")
    ] = False,
    path_column: Annotated[str, typer.Option(help="Of a CSV: the column of paths.")] = "",
    label_column: Annotated[str, typer.Option(help="Of a CSV: the column of labels.")] = "",
    split_column: Annotated[str, typer.Option(help="Of a CSV: the column of parts.")] = "",
    json_file: Json = None,
) -> None:
    """Look at every image and name those that cannot be read.

    The exit code is 1 if there are any.
    """
    from msun_fastai.cli.output import check_output, make_console, write_result
    from msun_fastai.data.describe import scan_data

    check_output("--json", json_file)
    columns = {"path_column": path_column, "label_column": label_column}
    columns["split_column"] = split_column
    found = scan_data(dataset, data, data_root, decode, columns)
    console = make_console(json_file)
    counts = ", ".join(f"{n:,} in {part}" for part, n in found["parts"].items())
    lines = [f"{row['part']}: {row['reason']}" for row in found["bad"]]
    for line in [
        *found["notes"],
        *lines,
        f"{found['name']}: {counts}; {len(lines)} cannot be read",
    ]:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    write_result(found, json_file)
    if lines:
        raise typer.Exit(1)


def info_lines(found: dict[str, Any]) -> list[str]:
    """The description as lines of text."""
    lines = [f"{found['name']}: {found.get('title', '')}, {found['classes']} classes"]
    for key in ("licence", "citation", "sides", "access"):
        if found.get(key):
            lines.append(f"{key}: {found[key]}")
    if found.get("hub_id"):
        lines.append(f"hub: {found['hub_id']} ({found['revision']})")
    if found.get("splits"):
        counts = ", ".join(f"{split} {n:,}" for split, n in found["splits"].items())
        lines.append(f"splits: {counts}")
    here = found["here"]
    if here is None:
        return [*lines, "no copy of it here; --data-root DIR says where to look"]
    parts = ", ".join(f"{n:,} to {_purpose(part)}" for part, n in here["parts"].items())
    lines += [f"here: {here['layout']} {here['folder']}".rstrip(), f"parts: {parts}"]
    lines += here["notes"]
    lines.append("native sizes (shorter side, up to):")
    most = max(here["native_sizes"].values(), default=1)
    for edge, n in here["native_sizes"].items():
        lines.append(f"{edge:>6} {n:>9,} {'#' * max(1, round(BAR * n / most))}")
    took = ", ".join(f"{scale}: {n:,}" for scale, n in here["routed"].items())
    lines.append(f"routed to {took}")
    if here["unreadable_count"]:
        lines.append(f"{here['unreadable_count']} images cannot be read, among them:")
        lines += here["unreadable"]
    return lines


def _purpose(part: str) -> str:
    return {"train": "train on", "valid": "watch", "test": "test on"}[part]
