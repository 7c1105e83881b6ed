"""`msun-fastai recipes`: the recipes that are shipped, one in full, and whether a file is one."""

from __future__ import annotations

from typing import Annotated

import typer

from msun_fastai.cli.options import Json

WIDEST = 40  # characters of a cell

recipes = typer.Typer(
    name="recipes",
    help="List the recipes that are shipped, show one in full, check a file.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@recipes.callback()
def list_all(ctx: typer.Context, json_file: Json = None) -> None:
    """List the recipes that are shipped, with the figure expected of each and the one achieved."""
    if ctx.invoked_subcommand is not None:
        return
    from msun_fastai.cli.output import check_output, make_console, print_table, write_result
    from msun_fastai.recipe_list import list_recipes

    check_output("--json", json_file)
    rows = list_recipes()
    columns = ["name", "verb", "dataset", "arch", "method", "expected", "achieved"]
    cells = [[shortened(row[c] or "") for c in columns] for row in rows]
    print_table(make_console(json_file), "recipes", columns, cells)
    write_result(rows, json_file)


def shortened(text: str) -> str:
    """`text` as far as it fits into a column; `--json` and the recipe itself have all of it."""
    return text if len(text) <= WIDEST else text[: WIDEST - 3].rstrip() + "..."


@recipes.command()
def show(name: Annotated[str, typer.Argument(help="A shipped recipe, or a .toml file.")]) -> None:
    """Print a recipe as TOML: all values, those it rests on and the defaults included.

    What is not set comes as comments.
    """
    from msun_fastai.recipe import load_recipe

    recipe = load_recipe(name)
    typer.echo(recipe.to_toml())
    typer.echo(f"# not set: {', '.join(recipe.unset())}")


@recipes.command()
def check(file: Annotated[str, typer.Argument(help="A .toml file, or a shipped recipe.")]) -> None:
    """Check a recipe: its keys, its values and its choices. The data are not looked at."""
    from msun_fastai.errors import UserError
    from msun_fastai.recipe import load_recipe

    recipe = load_recipe(file)

    from msun_fastai.choices import check_choices

    try:
        check_choices(recipe, None)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    data = recipe.data.dataset or recipe.data.path or "data to be named"
    typer.echo(
        f"{file}: a recipe for `{recipe.verb}`: {data}, {recipe.model.arch}, {recipe.model.method}"
    )
