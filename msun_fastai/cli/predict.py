"""`msun-fastai predict`: label images of any size with a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from msun_fastai.predict import Prediction

SHOWN = 50  # rows of the table on screen; --out has them all


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(help="Image files, folders, or globs in quotes.", metavar="PATH..."),
    ],
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    out: Annotated[
        str | None, typer.Option(help="Write one row an image to this .csv or .json.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to list.", min=1)] = 5,
    bs: Annotated[int, typer.Option(help="Images in a batch.", min=1)] = 64,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")
    ] = None,
    json_file: Annotated[
        str | None,
        typer.Option("--json", help="Write the rows as JSON to this file; - for standard output."),
    ] = None,
) -> None:
    """Predict images of any size; those that cannot be read are listed with the reason.

    The exit code is 1 if any image could not be read.
    """
    from msun_fastai.cli.output import check_output, make_console, print_table, write_result
    from msun_fastai.data.inputs import expand_paths
    from msun_fastai.errors import UserError

    if out is not None and not out.lower().endswith((".csv", ".json")):
        raise UserError(f"--out {out}: the name must end in .csv or .json")
    check_output("--out", out)
    check_output("--json", json_file)
    files = expand_paths(paths)

    from msun_fastai.memory import keep_freed_memory
    from msun_fastai.predict import Predictor

    keep_freed_memory()
    predictions = list(Predictor.from_run(model, device, bs=bs).predict(files, top))
    console = make_console(json_file)
    rows = [screen_row(p) for p in predictions[:SHOWN]]
    print_table(console, "", ("path", "size", "subnet", "label", "probability", "error"), rows)
    if len(predictions) > SHOWN:
        console.print(f"... and {len(predictions) - SHOWN} more; --out writes them all")
    failed = sum(p.error is not None for p in predictions)
    if failed:
        console.print(f"{failed} of {len(predictions)} images could not be read", highlight=False)
    table = [p.as_row() for p in predictions]
    if out is not None:
        write_rows(table, out)
    write_result(table, json_file)
    if failed:
        raise typer.Exit(1)


def screen_row(p: Prediction) -> list[Any]:
    """What the table on screen shows of a prediction."""
    size = f"{p.width}x{p.height}" if p.width else ""
    share = "" if p.probability is None else f"{p.probability:.1%}".replace("%", " %")
    return [p.path, size, p.scale, p.label, share, p.error]


def write_rows(rows: list[dict[str, Any]], out: str) -> None:
    """The rows to a CSV (the top classes as JSON in their column) or a JSON file."""
    import json

    from msun_fastai import files

    if out.lower().endswith(".json"):
        files.write_json(out, rows)
        return
    files.write_rows(
        out, [{**row, "top": json.dumps(row["top"], ensure_ascii=False)} for row in rows]
    )
