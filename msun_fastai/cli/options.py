"""Options that several verbs have, with the same words in each."""

from __future__ import annotations

from typing import Annotated

import typer

Text = str | None

ARCH = typer.Option(help="Backbone: a name of torchvision's or timm's, such as resnet50.")
METHOD = typer.Option(help="msun, snet, mst or vanilla.")
SCALES = typer.Option(help="Input sides, ascending, such as 32,128,224, or S2 to S5.")
BLOCKS = typer.Option(help="Blocks in each subnet behind its stem: the k of Bk.")
ALIGNMENT = typer.Option(
    help="Grid of the deep layers: canonical (msun's default) or native (snet's)."
)
GRIDS = typer.Option(help="Sides of the subnets' grids, such as 16,32,56.")
NORM = typer.Option(help="Batch norm in the deep layers: shared or per_scale.")
ROUTING = typer.Option(help="nearest or up.")

DataRoot = Annotated[
    Text, typer.Option(help="Folder with local copies of datasets.", envvar="MSUN_DATA_ROOT")
]
Json = Annotated[
    Text,
    typer.Option("--json", help="Write the figures as JSON to this file; - for standard output."),
]
