"""`msun-fastai methods`: several methods trained on the same data, in one table."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli import training
from msun_fastai.cli.options import Text

if TYPE_CHECKING:
    from msun_fastai.recipe import Recipe
    from msun_fastai.standings import Standing, Standings

# what each entry says itself, and what is about one run
LEFT_OUT = (
    *("method", "consistency", "baseline", "norm", "alignment"),
    *("model", "resume", "dry_run", "find_lr", "run_dir"),
)

# values of a recipe that would be overwritten
SAID_BY_ENTRIES = (
    *("verb", "baseline", "model.method", "model.start"),
    *("consistency.kind", "model.alignment", "model.norm"),
)


def own_options(
    entries: Annotated[
        list[str],
        typer.Argument(
            help="METHOD[+WORD...][@SCALES]: a method, such as msun, with si, sd, ensemble, none, "
            "shared, per_scale, native or canonical instead of its own, and at scales of its own: "
            "snet+sd, vanilla@16.",
            metavar="ENTRY...",
        ),
    ],
    seeds: Annotated[
        int, typer.Option(help="Trainings of each, with --seed and those after it.", min=1)
    ] = 1,
    jobs: Annotated[
        int, typer.Option(help="Trainings beside each other, in processes.", min=1)
    ] = 1,
    sizes: Annotated[
        Text,
        typer.Option(help="Input sizes, 32:224:16 or 32,128; 13 over all scales by default."),
    ] = None,
    run_dir: Annotated[
        Text,
        typer.Option(
            help="Folder of the run folders, ENTRY/seed-N; what is there is kept, and what was "
            "stopped goes on; runs/methods-DATA-TIME by default."
        ),
    ] = None,
) -> None:
    """The options that this verb has beside those of training."""


def methods_verb() -> Any:
    """The function of the verb, for Typer: its own options, and those of training that fit."""
    shared = inspect.signature(training.options, eval_str=True).parameters.values()
    own = inspect.signature(own_options, eval_str=True).parameters.values()
    parameters = [*own, *(p for p in shared if p.name not in LEFT_OUT)]
    as_keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]

    def verb(ctx: typer.Context, **given: Any) -> None:
        compare_methods(given)

    verb.__name__ = "methods"
    verb.__doc__ = (
        "Train several methods on the same data, with several seeds, and compare them: accuracy at "
        "every size, cost, parameters and time."
    )
    verb.__signature__ = inspect.Signature(as_keywords)  # type: ignore[attr-defined]
    verb.__annotations__ = {p.name: p.annotation for p in as_keywords}
    return verb


methods = methods_verb()


def compare_methods(given: dict[str, Any]) -> None:
    """Train what the options say, and show, draw and write how it compares."""
    from msun_fastai.cli.output import check_folder, check_output, make_console, say, write_result
    from msun_fastai.scales import parse_sizes

    json_file = given["json_file"]
    check_output("--json", json_file)
    check_folder("--run-dir", given["run_dir"])
    sizes = parse_sizes(given["sizes"]) if given["sizes"] is not None else None
    base = base_recipe(given)
    console = make_console(json_file)

    from msun_fastai.entries import parse_entry
    from msun_fastai.lineup import plan_lineup, train_lineup
    from msun_fastai.memory import keep_freed_memory

    keep_freed_memory()
    entries = [parse_entry(text) for text in given["entries"]]
    lineup = plan_lineup(base, entries, given["seeds"], given["run_dir"], sizes)
    found = train_lineup(lineup, console, given["jobs"])
    show(console, found)
    write(lineup.folder, found)
    say(console, f"run folders, pictures and tables in {lineup.folder}")
    write_result(found.as_dict(), json_file)


def base_recipe(given: dict[str, Any]) -> Recipe:
    """The recipe that all entries rest on. Raises `UserError`, also for what entries say."""
    from msun_fastai.errors import UserError
    from msun_fastai.recipe import load_recipe, parse_assignment

    for key, _ in map(parse_assignment, given["assign"] or []):
        if key in SAID_BY_ENTRIES:
            raise UserError(f"--set {key}: each entry says it, such as msun+none+per_scale")
    named = given["recipe"]
    verb = load_recipe(named).verb if named is not None else "finetune"
    if verb == "linear-probe":
        raise UserError(f"recipe {named}: is one for linear-probe; methods are trained whole")
    return training.chosen_recipe(verb, {**dict.fromkeys(LEFT_OUT), **given})


def show(console: Any, found: Standings) -> None:
    """Accuracy at each size, a column an entry; then what each costs."""
    from msun_fastai.cli.output import print_table
    from msun_fastai.cli.testing import billions

    trained = f"{len(found.seeds)} seeds, mean ± deviation" if len(found.seeds) > 1 else "one seed"
    title = f"{found.data}: accuracy (%) on {found.images:,} {found.part} images; {trained}"
    by_size = [
        [size, *(figure(way.accuracy[i], way.deviation_at(i)) for way in found.ways)]
        for i, size in enumerate(found.sizes)
    ]
    means = [figure(way.mean_accuracy, way.mean_deviation) for way in found.ways]
    names = [way.name for way in found.ways]
    print_table(console, title, ["size", *names], [*by_size, ["mean", *means]])
    rows = [
        [
            *(way.name, mean_figure(way), billions(way.mean_macs)),
            *(f"{way.params / 1e6:.2f}", f"{way.seconds:.0f}"),
        ]
        for way in found.ways
    ]
    heads = ["entry", "mean accuracy (%)", "mean MACs (G)", "parameters (M)", "training (s)"]
    print_table(console, "", heads, rows)


def figure(share: float, deviation: float | None) -> str:
    """A share in per cent, with its deviation where there is one."""
    text = f"{100 * share:.1f}"
    return text if deviation is None else f"{text} ± {100 * deviation:.1f}"


def mean_figure(way: Standing) -> str:
    """The mean over the sizes with its deviation, or, of a single training, its interval."""
    text = figure(way.mean_accuracy, way.mean_deviation)
    if way.mean_deviation is not None:
        return text
    low, high = way.ends()[1]
    return f"{text} ({100 * low:.1f} to {100 * high:.1f})"


def write(folder: Path, found: Standings) -> None:
    """The curves and the costs as PNG, the numbers as CSV and JSON, in `folder`."""
    from msun_fastai import figures
    from msun_fastai.files import write_json, write_rows
    from msun_fastai.plots import save_figure

    rows = found.rows()
    save_figure(figures.draw_accuracy(rows), folder / "accuracy.png")
    save_figure(figures.draw_means(found.mean_rows()), folder / "cost.png")
    write_rows(folder / "methods.csv", rows)
    write_json(folder / "methods.json", found.as_dict())
