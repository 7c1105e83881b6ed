"""The program and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from msun_fastai import __version__
from msun_fastai.cli.analyze import analyze
from msun_fastai.cli.calibrate import calibrate
from msun_fastai.cli.compare import compare
from msun_fastai.cli.datasets import datasets
from msun_fastai.cli.evaluate import evaluate
from msun_fastai.cli.export import export
from msun_fastai.cli.finetune import finetune
from msun_fastai.cli.flops import flops
from msun_fastai.cli.linear_probe import linear_probe
from msun_fastai.cli.methods import methods
from msun_fastai.cli.predict import predict
from msun_fastai.cli.pretrain import pretrain
from msun_fastai.cli.push import push
from msun_fastai.cli.recipes import recipes
from msun_fastai.cli.report import report
from msun_fastai.cli.routing import routing
from msun_fastai.cli.web import app as web_page

app = typer.Typer(
    name="msun-fastai",
    help="Image classifiers that are good at every input size.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is made in a fifth of the time
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"msun-fastai {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of every verb; `main` acts on --debug before they are read."""


app.command()(pretrain)
app.command()(finetune)
app.command("linear-probe")(linear_probe)
app.command()(methods)
app.command()(calibrate)
app.command()(predict)
app.command()(evaluate)
app.command()(routing)
app.command()(compare)
app.command()(report)
app.command()(export)
app.command()(push)
app.command("app")(web_page)
app.add_typer(analyze)
app.command()(flops)
app.add_typer(recipes)
app.add_typer(datasets)
