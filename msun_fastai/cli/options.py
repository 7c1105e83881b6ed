"""Options that several verbs have, with the same words in each."""

from __future__ import annotations

from typing import Annotated

import typer

Text = str | None

ARCH = typer.Option(
    help="Backbone: a name of torchvision's or timm's, such as resnet50, or a ScaleNet's, such as "
    "scalenet44_d10."
)
METHOD = typer.Option(help="msun, rsnet, san, snet, mst or vanilla.")
SCALES = typer.Option(help="Input sides, ascending, such as 32,128,224, or S2 to S5.")
BLOCKS = typer.Option(help="Blocks in each subnet behind its stem: the k of Bk.")
ALIGNMENT = typer.Option(
    help="Grid of the deep layers: canonical (msun's default) or native (the others')."
)
GRIDS = typer.Option(help="Sides of the subnets' grids, such as 16,32,56.")
NORM = typer.Option(help="Batch norm in what scales share: shared or per_scale.")
ROUTING = typer.Option(help="nearest, up, or thresholds: calibrated:40,150.")

DataRoot = Annotated[
    Text, typer.Option(help="Folder with local copies of datasets.", envvar="MSUN_DATA_ROOT")
]
Json = Annotated[
    Text,
    typer.Option("--json", help="Write the figures as JSON to this file; - for standard output."),
]

# which images a trained model is looked at with
DataName = Annotated[
    Text, typer.Option("--dataset", help="A dataset by name; the run's own data by default.")
]
DataPath = Annotated[
    Text, typer.Option("--data", help="A folder of class folders, or a CSV of paths and labels.")
]
Limit = Annotated[
    int | None, typer.Option(help="At most so many images, spread over the classes.", min=1)
]
Part = Annotated[
    str,
    typer.Option(help="measured (test, or else validation), train, valid, test or all."),
]
Batch = Annotated[int, typer.Option("--bs", help="Images in a batch.", min=1)]
Workers = Annotated[
    int, typer.Option(help="Processes that decode images; 0 decodes in this one.", min=0)
]
Device = Annotated[Text, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")]
OutDir = Annotated[
    Text, typer.Option("--out", help="Folder for pictures and tables; a new one in runs/.")
]
