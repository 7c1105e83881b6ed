"""The shipped recipes as rows: what each is for, and what its header says."""

from __future__ import annotations

import re
from pathlib import Path

from msun_fastai.recipe import load_recipe, shipped_recipes

HEADER = ("paper", "command", "hardware", "expected", "achieved")  # the words of a header
_ENTRY = re.compile(rf"# ({'|'.join(HEADER)})\s+(.+)")
_MORE = re.compile(r"#\s{3,}(.+)")  # the line before goes on


def list_recipes() -> list[dict[str, str]]:
    """A row per shipped recipe: name, verb, dataset, arch, method, and its header's entries."""
    return [_row(name, file) for name, file in shipped_recipes().items()]


def _row(name: str, file: Path) -> dict[str, str]:
    recipe, header = load_recipe(name), read_header(file.read_text(encoding="utf-8"))
    about = {
        "name": name,
        "verb": recipe.verb,
        "dataset": recipe.data.dataset or "",
        "arch": recipe.model.arch,
        "method": recipe.model.method,
    }
    return {**about, **{word: header.get(word, "") for word in HEADER}}


def read_header(text: str) -> dict[str, str]:
    """The entries of a recipe's header, by their word; what goes on in the next line is joined.

    >>> read_header("# A demo.\\n# hardware  2 cores,\\n#           3 minutes\\n\\n# paper  none")
    {'hardware': '2 cores, 3 minutes'}
    """
    entries: dict[str, str] = {}
    word = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if entry := _ENTRY.match(line):
            word, entries[entry[1]] = entry[1], entry[2].strip()
        elif word and (more := _MORE.match(line)):
            entries[word] = f"{entries[word].removesuffix(chr(92)).rstrip()} {more[1].strip()}"
    return entries
