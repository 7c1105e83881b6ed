"""`msun-fastai calibrate`: a trained model fitted to its input sizes (FixRes)."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from msun_fastai.cli.options import DataName, DataPath, DataRoot, Device, Json, Text

KEYS = {  # options that are a recipe's values
    "size": "calibration.size",
    "what": "calibration.what",
    "dataset": "data.dataset",
    "data": "data.path",
    "data_root": "data.root",
    "limit": "data.limit",
    "workers": "data.workers",
    "bs": "train.bs",
    "seed": "train.seed",
    "device": "train.device",
}


def calibrate(
    ctx: typer.Context,
    model: Annotated[
        Text, typer.Option(help="Run folder or model folder of the trained network.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="The side in pixels that all images will have.")
    ] = None,
    sizes: Annotated[
        Text,
        typer.Option(
            help="Sizes that get batch norms of their own: a list or smallest:largest:step."
        ),
    ] = None,
    what: Annotated[
        Text,
        typer.Option(help="bn: the statistics of batch norms; classifier+bn: the classifier, too."),
    ] = None,
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    limit: Annotated[
        int | None, typer.Option(help="At most so many images in each part.", min=1)
    ] = None,
    bs: Annotated[int | None, typer.Option(help="Images in a batch.", min=1)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode images; 2 by default.", min=0)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Order of the images.", min=0)] = None,
    device: Device = None,
    recipe: Annotated[
        Text, typer.Option(help="The recipe of a calibration, instead of --model.")
    ] = None,
    run_dir: Annotated[
        Text, typer.Option(help="Run folder, new or empty; runs/DATA-METHOD-calibrate-TIME.")
    ] = None,
    json_file: Json = None,
) -> None:
    """Fit a trained model to its input sizes on its training images: a new run that names its
    parent. With --size to one, for which every scale but the nearest is left behind; with --sizes
    the batch norms to several, each its own."""
    from msun_fastai.cli.output import check_output, make_console, write_result
    from msun_fastai.cli.training import show_metrics
    from msun_fastai.memory import keep_freed_memory
    from msun_fastai.scales import parse_sizes

    check_output("--json", json_file)
    values = {KEYS[k]: v for k, v in ctx.params.items() if k in KEYS and v is not None}
    if sizes is not None:
        values["calibration.sizes"] = list(parse_sizes(sizes))
    chosen = chosen_recipe(model, recipe, values)
    console = make_console(json_file)
    keep_freed_memory()
    from msun_fastai.run import run

    result = run(chosen, console, run_dir)
    show_metrics(console, result.metrics)
    console.print(f"run folder {result.folder}", highlight=False, soft_wrap=True)
    write_result({"run": str(result.folder), **result.metrics}, json_file)


def chosen_recipe(model: str | None, recipe: str | None, values: dict[str, Any]) -> Any:
    """The recipe that the options name. Raises `UserError`."""
    from msun_fastai.choices import calibration_recipe
    from msun_fastai.errors import UserError
    from msun_fastai.recipe import load_recipe

    if (model is None) == (recipe is None):
        raise UserError("calibrate: give --model, or the --recipe of a calibration")
    if model is not None:
        return calibration_recipe(model, values)
    chosen = load_recipe(str(recipe))
    if chosen.verb != "calibrate":
        raise UserError(f"recipe: it is one for `msun-fastai {chosen.verb}`, not for calibrate")
    return chosen.with_values(values, "calibrate")
