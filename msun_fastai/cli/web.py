"""`msun-fastai app`: a web page on this machine to try a model on images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from msun_fastai.cli.options import Device


def app(
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    host: Annotated[
        str, typer.Option(help="Address to serve on; others than this machine's are open to all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    device: Device = None,
) -> None:
    """Serve a page where images of any size are dropped: subnet, cost, answers, Grad-CAM, and what
    changes as the image is rescaled."""
    from msun_fastai.cli.output import make_console, say
    from msun_fastai.cli.testing import open_run
    from msun_fastai.errors import UserError

    try:
        from msun_fastai.webapp import LOCAL, serve
    except ImportError as error:
        raise UserError(
            f"app: {error.name} is not installed; pip install 'msun-fastai[app]'"
        ) from error
    console = make_console(None)
    saved = open_run(model, device)
    if host not in LOCAL:
        say(console, f"{host}: everyone who reaches this machine can use it; there is no password")
    say(console, f"http://{host}:{port} (Ctrl-C ends it)")
    try:
        serve(saved, Path(model).resolve().name, host, port)
    except SystemExit as error:  # uvicorn's, which has said why
        raise UserError(f"--port {port}: cannot be served on; try another") from error
