"""What the verbs that train have in common: their options, and how a recipe comes of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from msun_fastai.recipe import Recipe

KEYS = {  # options that are a recipe's values
    "dataset": "data.dataset",
    "data": "data.path",
    "data_root": "data.root",
    "limit": "data.limit",
    "on_bad_image": "data.on_bad_image",
    "arch": "model.arch",
    "method": "model.method",
    "scales": "model.scales",
    "blocks": "model.blocks",
    "alignment": "model.alignment",
    "grids": "model.grids",
    "norm": "model.norm",
    "pretrained": "model.pretrained",
    "weights": "model.weights",
    "model": "model.start",
    "consistency": "consistency.kind",
    "baseline": "baseline",
    "views": "train.views",
    "epochs": "train.epochs",
    "bs": "train.bs",
    "lr": "train.lr",
    "label_smoothing": "train.label_smoothing",
    "clip": "train.clip",
    "ema": "train.ema",
    "patience": "train.patience",
    "precision": "train.precision",
    "compile": "train.compile",
    "log": "train.log",
    "seed": "train.seed",
    "device": "train.device",
    "protocol": "probe.protocol",
}
# what a trained network brings along
OF_NETWORK = (
    *("arch", "method", "scales", "blocks", "alignment", "grids", "norm", "routing"),
    *("weights", "pretrained"),
)
# what a preset depends on
ASKED_BY_PRESET = (
    *("model.start", "model.scales", "model.pretrained", "model.weights"),
    "train.views",
)
# what a cached probe has no use for
OF_TRAINING = (
    *("epochs", "lr", "label_smoothing", "clip", "ema", "patience", "precision", "compile", "log"),
)
# what a run that goes on may be given
WITH_RESUME = ("resume", "data_root", "device", "log", "json_file")


def options(
    ctx: typer.Context,
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
    preset: Annotated[
        Text,
        typer.Option(help="MSUN as its paper has it, or what our study found best: paper or best."),
    ] = None,
    model: Annotated[
        Text, typer.Option(help="Start from the network of this run folder.", metavar="RUN")
    ] = None,
    arch: Annotated[Text, ARCH] = None,
    method: Annotated[Text, METHOD] = None,
    consistency: Annotated[
        Text, typer.Option(help="si, sd, ensemble or none; the method's own by default.")
    ] = None,
    baseline: Annotated[
        Text, typer.Option(help="A method to train the same way and compare with.")
    ] = None,
    scales: Annotated[Text, SCALES] = None,
    blocks: Annotated[int | None, BLOCKS] = None,
    alignment: Annotated[Text, ALIGNMENT] = None,
    grids: Annotated[Text, GRIDS] = None,
    norm: Annotated[Text, NORM] = None,
    views: Annotated[
        Text, typer.Option(help="Views that a training image gives: all, native or down.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    bs: Annotated[int | None, typer.Option(help="Images in a batch.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Share of a label spread over all classes.")
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Decay of a running average of the weights, which is kept."),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after N epochs without a lower validation loss.")
    ] = None,
    precision: Annotated[
        Text, typer.Option(help="full, bf16 or fp16, where the device has it.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="Use torch.compile.")
    ] = None,
    log: Annotated[Text, typer.Option(help="tensorboard or wandb.")] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option("--pretrained/--no-pretrained", help="Start from ImageNet weights."),
    ] = None,
    weights: Annotated[
        Text,
        typer.Option(
            help="Start from this state-dict file instead, or from the run folder of a network "
            "of one scale with the same backbone.",
            metavar="FILE|RUN",
        ),
    ] = None,
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
        Text,
        typer.Option(
            help="Run folder: new, empty, or one that was stopped and goes on; "
            "runs/DATA-METHOD-TIME by default."
        ),
    ] = None,
    resume: Annotated[
        Text, typer.Option(help="Go on with the run in this folder, as it was.", metavar="RUN")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print recipe, data, cost, memory and time, and stop."),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="The recipe shrunk to a minute, on embedded images: does it run?"
        ),
    ] = False,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Look for a learning rate, print it, and stop.")
    ] = False,
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
    """The options of every verb that trains."""


PROTOCOL = inspect.Parameter(
    "protocol",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Text,
        typer.Option(help="cached: features taken once; sgd: trained as the paper does."),
    ],
)


def training_verb(name: str, text: str, *more: inspect.Parameter) -> Callable[..., None]:
    """The function of a verb that trains, for Typer: `options`, and `more` of its own."""
    signature = inspect.signature(options, eval_str=True)
    parameters = [*signature.parameters.values(), *more]
    as_keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

    def verb(ctx: typer.Context, **given: Any) -> None:
        train(name, ctx, given)

    verb.__name__, verb.__doc__ = name.replace("-", "_"), text
    verb.__signature__ = signature.replace(parameters=as_keywords)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in as_keywords}
    return verb


def train(verb: str, ctx: typer.Context, given: dict[str, Any]) -> None:
    """Run `verb` with the options that were given."""
    from msun_fastai.cli.output import check_output, make_console, write_result

    json_file = given["json_file"]
    check_output("--json", json_file)
    if given["resume"] is not None:
        _refuse_beside_resume(ctx)
        from msun_fastai.runfolder import unfinished_recipe

        recipe, run_dir = unfinished_recipe(Path(given["resume"])), given["resume"]
        kept = {KEYS[name]: given[name] for name in ("data_root", "device", "log")}
        recipe = recipe.with_values({k: v for k, v in kept.items() if v is not None}, "--resume")
    else:
        recipe, run_dir = chosen_recipe(verb, given), given["run_dir"]
    _check_verb(verb, recipe)
    console = make_console(json_file)
    if given["smoke"]:
        sides = ", ".join(map(str, recipe.model.scales))
        console.print(
            f"smoke run: embedded images at {sides} pixels in place of the recipe's data; its "
            "figures mean nothing",
            highlight=False,
            soft_wrap=True,
        )

    from msun_fastai.memory import keep_freed_memory

    keep_freed_memory()
    if given["dry_run"] or given["find_lr"]:
        from msun_fastai.plan import find_rate, plan

        found = plan(recipe, console) if given["dry_run"] else find_rate(recipe, console, run_dir)
        for line in found["lines"]:
            console.print(line, highlight=False, soft_wrap=True, markup=False)
        write_result({k: v for k, v in found.items() if k != "lines"}, json_file)
        return

    from msun_fastai.run import run

    result = run(recipe, console, run_dir)
    if not result.metrics:
        return  # not the first of several processes
    show_metrics(console, result.metrics)
    console.print(f"run folder {result.folder}", highlight=False, soft_wrap=True)
    write_result({"run": str(result.folder), **result.metrics}, json_file)


def chosen_recipe(verb: str, given: dict[str, Any]) -> Recipe:
    """The recipe that the options name, with what they change. Raises `UserError`."""
    from msun_fastai.errors import UserError
    from msun_fastai.recipe import default_recipe, load_recipe, parse_assignment, with_preset
    from msun_fastai.scales import parse_numbers, parse_scales
    from msun_fastai.schedules import milestones_within
    from msun_fastai.smoke import smoke_recipe

    values = {key: given[name] for name, key in KEYS.items() if given.get(name) is not None}
    if given["scales"] is not None:
        values["model.scales"] = list(parse_scales(given["scales"]))
    if given["grids"] is not None:
        values["model.grids"] = parse_numbers("grids", given["grids"])
    assigned = dict(map(parse_assignment, given["assign"] or []))
    if given["model"] is not None:
        named = {f"model.{name}": f"--{name}" for name in OF_NETWORK}
        twice = [option for key, option in named.items() if key in values or key in assigned]
        if twice:
            raise UserError(
                f"--model {given['model']}: brings its own network; leave {twice[0]} out"
            )
    named, preset = given["recipe"], given["preset"]
    start = load_recipe(named) if named is not None else default_recipe(verb, preset)
    _check_verb(verb, start)
    if preset is not None:
        asked = {**values, **assigned}
        if asked.get("model.method", "msun") != "msun":
            raise UserError(
                f"--preset {preset}: its method is msun; leave {asked['model.method']} out"
            )
        before = {key: asked[key] for key in ASKED_BY_PRESET if key in asked}
        start = with_preset(start.with_values(before, verb), preset)
    if given["dataset"] is not None or given["data"] is not None:
        # they replace the recipe's data, whichever it had
        start = start.with_values({"data.dataset": None, "data.path": None}, "data")
    chosen = start.with_values(values, verb).with_values(assigned, "--set")
    short = chosen.train.epochs / start.train.epochs
    if given["epochs"] is not None and "train.warmup" not in assigned and short < 1:
        # the warm-up is a part of the training, and becomes shorter with it
        chosen = chosen.with_values({"train.warmup": start.train.warmup * short}, verb)
    if given["epochs"] is not None and "train.milestones" not in assigned:
        ends = (start.train.epochs, chosen.train.epochs)
        moved = milestones_within(start.train.milestones, *ends)
        chosen = chosen.with_values({"train.milestones": moved}, verb)
    unused = [name for name in OF_TRAINING if given.get(name) is not None]
    if verb == "linear-probe" and chosen.probe.protocol == "cached" and unused:
        option = unused[0].replace("_", "-")
        raise UserError(f"--{option}: a cached probe is not trained in steps; give --protocol sgd")
    return smoke_recipe(chosen) if given["smoke"] else chosen


def _check_verb(verb: str, recipe: Recipe) -> None:
    from msun_fastai.errors import UserError

    if recipe.verb != verb:
        raise UserError(f"recipe: it is one for `msun-fastai {recipe.verb}`, not for {verb}")


def _refuse_beside_resume(ctx: typer.Context) -> None:
    """Raise `UserError` for an option that --resume would ignore."""
    from msun_fastai.errors import UserError

    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    extra = [name for name in given if name not in WITH_RESUME]
    if extra:
        option = {"assign": "set"}.get(extra[0], extra[0]).replace("_", "-")
        raise UserError(f"--resume: the run has its own recipe; leave --{option} out")


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
    took = ", ".join(f"subnet {scale}: {n}" for scale, n in metrics["routing"].items() if n)
    at_own = f"at their own sizes: {metrics['native_accuracy']:.1%}"
    if base:
        at_own += f" ({base['method']} {base['native_accuracy']:.1%})"
    console.print(f"{at_own}; images routed to {took}", highlight=False, soft_wrap=True)
