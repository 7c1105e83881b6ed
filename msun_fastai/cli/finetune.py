"""`msun-fastai finetune`: train on a dataset or a folder, measure at every size."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from msun_fastai.cli.options import (
    ALIGNMENT,
    ARCH,
    BLOCKS,
    GRIDS,
    METHOD,
    NORM,
    SCALES,
    DataRoot,
    Text,
)


def finetune(
    dataset: Annotated[
        Text, typer.Option(help="Dataset by name, such as shapes or stanford_cars.")
    ] = None,
    data: Annotated[
        Text, typer.Option(help="Folder of class folders, or a CSV of paths and labels.")
    ] = None,
    data_root: DataRoot = None,
    recipe: Annotated[
        Text, typer.Option(help="Start from this recipe: a shipped name or a .toml file.")
    ] = None,
    arch: Annotated[Text, ARCH] = None,
    method: Annotated[Text, METHOD] = None,
    consistency: Annotated[
        Text, typer.Option(help="si or none; the method's own by default.")
    ] = None,
    baseline: Annotated[
        Text, typer.Option(help="A method to train the same way and compare with.")
    ] = None,
    scales: Annotated[Text, SCALES] = None,
    blocks: Annotated[int | None, BLOCKS] = None,
    alignment: Annotated[Text, ALIGNMENT] = None,
    grids: Annotated[Text, GRIDS] = None,
    norm: Annotated[Text, NORM] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    bs: Annotated[int | None, typer.Option(help="Images in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from ImageNet weights."),
    ] = None,
    weights: Annotated[Text, typer.Option(help="Start from this state-dict file instead.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most N images in each part.")] = None,
    on_bad_image: Annotated[
        Text,
        typer.Option(help="skip (counted, up to 1 % of the training images) or stop."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything that is drawn.")] = None,
    device: Annotated[
        Text, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")
    ] = None,
    run_dir: Annotated[
        Text, typer.Option(help="Run folder, new or empty; runs/DATA-METHOD-TIME by default.")
    ] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other recipe value, such as consistency.weight=0.5.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    json_file: Annotated[
        Text,
        typer.Option(
            "--json", help="Write the metrics as JSON to this file; - for standard output."
        ),
    ] = None,
) -> None:
    """Train a classifier on images of mixed sizes and test it at every size."""
    from msun_fastai.cli.output import check_output, make_console, write_result
    from msun_fastai.recipe import Recipe, load_recipe, parse_assignment
    from msun_fastai.scales import parse_numbers, parse_scales

    values: dict[str, Any] = {
        "data.dataset": dataset,
        "data.path": data,
        "data.root": data_root,
        "data.limit": limit,
        "model.arch": arch,
        "model.method": method,
        "model.blocks": blocks,
        "model.alignment": alignment,
        "model.grids": parse_numbers("grids", grids) if grids is not None else None,
        "model.norm": norm,
        "consistency.kind": consistency,
        "model.scales": list(parse_scales(scales)) if scales is not None else None,
        "model.pretrained": pretrained,
        "model.weights": weights,
        "train.epochs": epochs,
        "train.bs": bs,
        "train.lr": lr,
        "data.on_bad_image": on_bad_image,
        "train.seed": seed,
        "train.device": device,
        "baseline": baseline,
    }
    given = {key: value for key, value in values.items() if value is not None}
    start = load_recipe(recipe) if recipe is not None else Recipe()
    if dataset is not None or data is not None:  # they replace the recipe's data, whichever it had
        start = start.with_values({"data.dataset": None, "data.path": None}, "data")
    chosen = start.with_values(given, "finetune")
    chosen = chosen.with_values(dict(map(parse_assignment, assign or [])), "--set")
    check_output("--json", json_file)
    console = make_console(json_file)

    from msun_fastai.memory import keep_freed_memory
    from msun_fastai.run import finetune as run_finetune

    keep_freed_memory()
    result = run_finetune(chosen, console, run_dir)
    show_metrics(console, result.metrics)
    console.print(f"run folder {result.folder}", highlight=False, soft_wrap=True)
    write_result({"run": str(result.folder), **result.metrics}, json_file)


def show_metrics(console: Any, metrics: dict[str, Any]) -> None:
    """Accuracy at every input size, beside the baseline's, and what each subnet took."""
    from msun_fastai.cli.output import print_table

    base = metrics.get("baseline")
    columns = ["input size", "subnet", metrics["method"]]
    rows = [
        [size, subnet, f"{accuracy:.1%}".replace("%", " %")]
        for size, subnet, accuracy in zip(metrics["sizes"], metrics["subnet"], metrics["accuracy"])
    ]
    if base:
        columns += [base["method"], "difference"]
        for row, ours, theirs in zip(rows, metrics["accuracy"], base["accuracy"]):
            row += [f"{theirs:.1%}".replace("%", " %"), f"{100 * (ours - theirs):+.1f}"]
    part = "test" if metrics["test_images"] else "validation"
    count = metrics["measured_images"]
    title = f"accuracy at each input size ({count} {part} images)"
    print_table(console, title, columns, rows)
    took = ", ".join(f"subnet {scale}: {n}" for scale, n in metrics["routing"].items())
    at_own = f"at their own sizes: {metrics['native_accuracy']:.1%}"
    if base:
        at_own += f" ({base['method']} {base['native_accuracy']:.1%})"
    console.print(f"{at_own}; images routed to {took}", highlight=False, soft_wrap=True)
