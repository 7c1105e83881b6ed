"""`msun-fastai report`: the page of a run that is over, written again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import Batch, DataRoot, Device, Json, Workers

if TYPE_CHECKING:
    from rich.console import Console

    from msun_fastai.models.saving import SavedModel


def report(
    run: Annotated[str, typer.Argument(help="Folder of a run that is over.", metavar="RUN")],
    data_root: DataRoot = None,
    bs: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    json_file: Json = None,
) -> None:
    """Test a run's network again and write its report.html, one file that needs nothing else."""
    from msun_fastai.cli.output import check_output, make_console, say, write_result
    from msun_fastai.cli.testing import open_run, progress

    check_output("--json", json_file)
    console = make_console(json_file)
    from msun_fastai.report.again import check_run, report_again

    check_run(run)
    saved = open_run(run, device)
    samples = _samples(run, saved, console, data_root)
    with progress(console, "images", 2 * len(samples)) as told:
        made = report_again(run, saved, samples, bs, workers, told)
    say(console, made.summary)
    say(console, f"report in {made.page}")
    figures = {"mean_accuracy": made.tested.sweep.mean_accuracy}
    figures |= {"native_accuracy": made.tested.routed.accuracy}
    write_result({"report": str(made.page), "summary": made.summary, **figures}, json_file)


def _samples(run: str, saved: SavedModel, console: Console, root: str | None) -> Any:
    """The images that the run's figures are of, as a list or as the run's stream."""
    from msun_fastai.cli.testing import images_of
    from msun_fastai.data.chosen import load_source
    from msun_fastai.errors import UserError
    from msun_fastai.labelled import check_classes, run_recipe

    recipe = run_recipe(run)
    assert recipe is not None  # `check_run` has seen it
    try:
        if not recipe.data.stream or recipe.data.limit is not None:
            return images_of(run, saved, console, root=root).samples
        source = load_source(recipe.with_values({"data.root": root} if root else {}, "data"))
        check_classes(source, saved.classes)
        return source.measured
    except UserError as error:
        if "--data-root" in str(error):
            raise
        raise UserError(
            f"{error}; if the data were moved, name their folder with --data-root"
        ) from error
