"""`msun-fastai push`: a run's model and its card to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msun_fastai.cli.options import Json, Text


def push(
    run: Annotated[str, typer.Argument(help="Run folder or model folder.", metavar="RUN")],
    name: Annotated[str, typer.Argument(help="Repository, such as you/cars.", metavar="ID")],
    license: Annotated[
        Text, typer.Option(help="Of the weights, as the hub names it: apache-2.0, cc-by-4.0.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="A new repository is for its owner alone.")
    ] = False,
    revision: Annotated[Text, typer.Option(help="Branch to push to; main by default.")] = None,
    out: Annotated[
        Text,
        typer.Option(help="Write what would be pushed to this folder, and push nothing."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Push a run's model with a card made from the run: data, accuracy, cost, recipe, how to load
    it. The token is that of `hf auth login`, or HF_TOKEN."""
    from msun_fastai.cli.output import check_folder, check_output, make_console, say, write_result
    from msun_fastai.errors import UserError
    from msun_fastai.hub import push as push_run
    from msun_fastai.hub import write_repository

    check_output("--json", json_file)
    check_folder("--out", out)
    console = make_console(json_file)
    if out is not None:
        if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
            raise UserError(f"--out {out}: exists and is not empty; name another")
        folder = write_repository(run, name, Path(out), license)
        say(console, f"{folder}: what would be pushed to {name}; read its README.md")
        write_result({"folder": str(folder)}, json_file)
        return
    address = push_run(run, name, license, private, revision)
    say(console, f"pushed: {address}")
    write_result({"commit": str(address)}, json_file)
