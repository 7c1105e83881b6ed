"""`msun-fastai routing`: which subnet a model sends images to, and better thresholds for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import (
    ROUTING,
    Batch,
    DataName,
    DataPath,
    DataRoot,
    Device,
    Json,
    Limit,
    Text,
    Workers,
)

if TYPE_CHECKING:
    from msun_fastai.labelled import Labelled
    from msun_fastai.models.saving import SavedModel
    from msun_fastai.routing import Gain


def routing(
    model: Annotated[str, typer.Option(help="Run folder or model folder.")],
    dataset: DataName = None,
    data: DataPath = None,
    data_root: DataRoot = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Learn thresholds on validation data, save them."),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            help="With --calibrate: the most that the mean cost may be, as a share of "
            "the canonical subnet's."
        ),
    ] = None,
    use: Annotated[Text, ROUTING] = None,
    sizes: Annotated[
        Text,
        typer.Option(
            help="Take the images at these sizes instead of their own: 32:224:16 or 32,128."
        ),
    ] = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(help="Which images --limit takes, and of the halves.")] = 42,
    bs: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    json_file: Json = None,
) -> None:
    """Report how images are routed and what other rules would do; --calibrate and --use change the
    model's rule, and `predict` uses it from then on."""
    from msun_fastai.cli.output import check_output, make_console, say, write_result
    from msun_fastai.cli.testing import images_of, open_run, progress, tested_title
    from msun_fastai.errors import UserError
    from msun_fastai.models.saving import refuse_rerouting, set_routing
    from msun_fastai.routing import ask_every_subnet, calibrated_rule, check_budget
    from msun_fastai.scales import parse_sizes

    check_output("--json", json_file)
    if budget is not None and not calibrate:
        raise UserError("--budget: is for --calibrate")
    if use is not None and calibrate:
        raise UserError("--use, --calibrate: two rules for one model; choose one")
    check_budget(budget)
    sides = parse_sizes(sizes) if sizes is not None else None
    console = make_console(json_file)
    saved = open_run(model, device)
    if len(saved.model.entry_scales) == 1:
        raise UserError(f"{model}: {saved.model.config.method} has one scale; nothing to route")
    if use is not None or calibrate:
        refuse_rerouting(saved.model.config, str(model))
    if use is not None:
        saved.model.config = replace(saved.model.config, routing=use)  # refused before all else
    choice = {"dataset": dataset, "data": data, "root": data_root, "limit": limit, "seed": seed}
    found = images_of(model, saved, console, **choice)

    def asked(samples: list[Any]) -> Any:
        with progress(console, "images", len(samples)) as told:
            return ask_every_subnet(saved, samples, sides, bs, workers, told)

    about: dict[str, Any] = {"model": model, "data": found.name, "sizes": sides}
    if not calibrate:
        routed = asked(found.samples)
        result = reported(console, tested_title(found, routed.answers), saved, routed)
        if use is not None:
            say(console, f"{set_routing(model, use)}: routing {use}, saved")
        write_result({**about, **result}, json_file)
        return
    to_fit, held, words = divided(console, model, saved, found, choice)
    fitted = asked(to_fit)
    rule = calibrated_rule(fitted, budget)
    result = {"routing": rule, "budget": budget}
    result["fitted"] = reported(console, f"fitted on {words[0]}", saved, fitted, rule, budget)
    result["held_out"] = reported(console, f"on {words[1]}", saved, asked(held), rule, budget)
    for line in remarks(rule, saved.model.entry_scales, result["held_out"]["gain"]):
        say(console, line)
    folder = set_routing(model, rule, {**about, **result})
    say(console, f"{folder}: routing {rule}, saved; --use nearest takes it back")
    write_result({**about, **result}, json_file)


def divided(
    console: Any, run: str, saved: SavedModel, found: Labelled, choice: dict[str, Any]
) -> tuple[list[Any], list[Any], tuple[str, str]]:
    """The images to fit thresholds on, the images to report on, and what they are: the validation
    and the test part where there are both, else halves of what there is."""
    from msun_fastai.cli.testing import images_of
    from msun_fastai.data.samples import stratified_split
    from msun_fastai.errors import UserError

    if found.source.test and found.source.valid:
        valid = images_of(run, saved, console, **choice, part="valid")
        words = (
            f"{len(valid.samples):,} validation images",
            f"{len(found.samples):,} test images",
        )
        return valid.samples, found.samples, words
    one, other = stratified_split(found.samples, 0.5, choice["seed"])
    if not one or not other:
        raise UserError(
            f"{found.name}: {len(found.samples)} images are too few to fit thresholds on half of "
            "them and report on the others"
        )
    half = "half of them" if found.part == "all" else f"half of the {found.part} images"
    return one, other, (f"{len(one):,} images, {half}", f"the other {len(other):,} images")


def reported(
    console: Any,
    title: str,
    saved: SavedModel,
    routed: Any,
    rule: str | None = None,
    budget: float | None = None,
) -> dict[str, Any]:
    """Print what the rules do to these images, and what the calibrated one gains; as JSON too."""
    from msun_fastai.cli.output import print_table, say
    from msun_fastai.cli.testing import between, billions, percent
    from msun_fastai.routing import FIXED, gain, rule_rows

    rows = rule_rows(routed, [rule or saved.model.config.routing, *FIXED])
    cells = [
        [
            row["rule"],
            percent(row["accuracy"]),
            between(row["interval"]),
            billions(row["mean_macs"]),
            percent(row["saving"]),
            ", ".join(f"{scale}: {n}" for scale, n in row["images"].items()),
        ]
        for row in rows
    ]
    columns = ["routing", "accuracy", "95 % interval", "mean MACs (G)", "saved", "subnets"]
    print_table(console, title, columns, cells)
    found: dict[str, Any] = {"images": len(set(routed.answers.images.tolist())), "rules": rows}
    if rule is None:
        under = routed.under(saved.model.config.routing)
        return {**found, "by_native_size": under.by_native_size()}
    better = gain(routed, rule, budget)
    say(console, gain_line(better))
    return {**found, "gain": better.as_dict()}


def gain_line(better: Gain) -> str:
    """What the calibrated rule has over the better fixed one, in a line."""
    from msun_fastai.cli.testing import points

    if better.than is None or better.difference is None or better.interval is None:
        return "neither of the fixed rules is within the budget"
    return f"calibrated less {better.than}, in points: {points(better.difference, better.interval)}"


def remarks(rule: str, scales: Sequence[int], held_out: dict[str, Any]) -> list[str]:
    """What a user should know of a rule before it is used: where images go, and whether the gain is
    there on images that it was not fitted to."""
    from msun_fastai.scales import described

    lines = [described(rule, scales)]
    if held_out["interval"] is not None and held_out["interval"][0] <= 0:
        lines.append("on the images that it was not fitted to it is not surely better")
    return lines
