"""`msun-fastai export`: a trained model in files that need no msun-fastai."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import Json

if TYPE_CHECKING:
    from msun_fastai.export import Exported

PICKLE_WARNING = (
    "learner.pkl is a pickle, which runs code when it is loaded: load it only where you trust "
    "whoever had it in hand"
)


def export(
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    out: Annotated[str, typer.Option("--out", help="Folder to write to, new or empty.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            help="onnx, torch-export: a file for each scale, and a router.json; fastai: a pickled "
            "Learner.",
        ),
    ] = "onnx",
    json_file: Json = None,
) -> None:
    """Write a trained model in files for elsewhere: ONNX, torch.export, or a fastai Learner.

    Each file of a network is run before it is kept, and has to answer as the model does.
    """
    from msun_fastai.cli.output import check_folder, check_output, make_console, say, write_result
    from msun_fastai.cli.testing import open_run
    from msun_fastai.export import export_model

    check_folder("--out", out)
    check_output("--json", json_file)
    console = make_console(json_file)
    found = export_model(open_run(model, "cpu"), out, kind)
    show_files(console, found)
    if found.kind == "onnx":
        say(console, f"try it: python {found.folder / 'run_onnx.py'} photo.jpg")
    elif found.kind == "fastai":
        say(console, PICKLE_WARNING)
    write_result({"model": model, **found.as_dict()}, json_file)


def show_files(console: Any, found: Exported) -> None:
    """A table of the files with their sizes; of networks their cost and how near they come."""
    from msun_fastai.cli.output import print_table
    from msun_fastai.cli.testing import billions

    networks = {network.file: network for network in found.networks}
    rows = []
    for name, size in found.files.items():
        network = networks.get(name)
        cost = [billions(network.macs), f"{network.difference:.1e}"] if network else [None, None]
        rows.append([name, f"{size:,}", *cost])
    columns = ["file", "bytes", "MACs (G)", "largest difference"]
    if not networks:
        columns, rows = columns[:2], [row[:2] for row in rows]
    print_table(console, f"in {found.folder}", columns, rows)
