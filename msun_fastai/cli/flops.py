"""`msun-fastai flops`: what a network costs at every input size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from msun_fastai.cli.options import (
    ALIGNMENT,
    ARCH,
    BLOCKS,
    GRIDS,
    METHOD,
    NORM,
    ROUTING,
    SCALES,
    Json,
    Text,
)

if TYPE_CHECKING:
    from msun_fastai.flops import Cost


def flops(
    ctx: typer.Context,
    arch: Annotated[str, ARCH] = "resnet50",
    method: Annotated[str, METHOD] = "msun",
    scales: Annotated[str, SCALES] = "S3",
    blocks: Annotated[int, BLOCKS] = 1,
    alignment: Annotated[Text, ALIGNMENT] = None,
    grids: Annotated[Text, GRIDS] = None,
    norm: Annotated[Text, NORM] = None,
    routing: Annotated[str, ROUTING] = "nearest",
    sizes: Annotated[
        Text,
        typer.Option(help="Input sizes, 32:224:16 or 32,128; 13 over the scales by default."),
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 1000,
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's figures and ours, for its four networks.")
    ] = False,
    json_file: Json = None,
) -> None:
    """Count parameters and multiply-accumulates (MACs), per subnet and per input size."""
    from msun_fastai.cli.output import check_output, make_console, write_result
    from msun_fastai.scales import parse_numbers, parse_scales, parse_sizes, sweep_sizes

    check_output("--json", json_file)
    console = make_console(json_file)
    if paper:
        refuse_options(ctx, keep={"paper", "json_file"})
        from msun_fastai.paper import NOTES, compare

        lines = compare()
        show_paper(console, lines, NOTES)
        write_result([line.as_dict() for line in lines], json_file)
        return
    sides = parse_scales(scales)
    tested = parse_sizes(sizes) if sizes is not None else sweep_sizes(sides[0], sides[-1])
    wanted = tuple(parse_numbers("grids", grids)) if grids is not None else None

    from msun_fastai.flops import network_cost
    from msun_fastai.models.net import NetConfig

    config = NetConfig(arch, classes, sides, method, blocks, alignment, wanted, norm, routing)
    cost = network_cost(config, tested)
    show_cost(console, config.arch, cost)
    write_result({**config.as_dict(), **cost.as_dict()}, json_file)


def refuse_options(ctx: typer.Context, keep: set[str]) -> None:
    """Raise `UserError` for an option that --paper would ignore."""
    from msun_fastai.errors import UserError

    sources = {name: ctx.get_parameter_source(name) for name in ctx.params if name not in keep}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise UserError(f"--paper takes no --{given[0]}: the networks are the paper's")


def show_cost(console: Any, arch: str, cost: Cost) -> None:
    """The cost per subnet, per input size, and the mean beside the plain backbone's."""
    from msun_fastai.cli.output import print_table

    def share(macs: float) -> str:
        return f"{100 * macs / cost.plain_macs:.1f} %"

    print_table(
        console,
        "cost of each subnet, the deep layers behind it included",
        ["subnet", "grid", "MACs (G)", "of canonical"],
        [
            [scale, cost.grids[scale], f"{macs / 1e9:.3f}", share(macs)]
            for scale, macs in cost.macs_per_subnet.items()
        ],
    )
    print_table(
        console,
        "cost of an image",
        ["input size", "subnet", "MACs (G)", "of canonical"],
        [
            [size, cost.subnet_by_size[size], f"{macs / 1e9:.3f}", share(macs)]
            for size, macs in cost.macs_by_size.items()
        ],
    )
    less = f"{100 * cost.saving:.1f} % less than" if cost.saving else "as much as"
    lines = (
        f"mean {cost.mean_macs / 1e9:.3f} G, {less} {arch} with every image brought to its "
        f"canonical scale ({cost.plain_macs / 1e9:.3f} G)",
        f"parameters {cost.params / 1e6:.2f}M, {arch} {cost.plain_params / 1e6:.2f}M",
        f"smallest image that {arch} takes by itself: {cost.plain_smallest} pixels",
    )
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def show_paper(console: Any, lines: Any, notes: Any) -> None:
    """The paper's figures and ours, and why some of them differ."""
    from msun_fastai.cli.output import print_table

    def number(value: float) -> str:
        return f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    rows = [
        [
            *(line.network, line.figure, line.table, number(line.paper), number(line.here)),
            f"{100 * line.difference:+.1f} %",
        ]
        for line in lines
    ]
    columns = ["network", "figure", "table", "paper", "here", "difference"]
    print_table(console, "costs in the paper, and here", columns, rows)
    for note in notes:
        console.print(note, highlight=False, soft_wrap=True)
