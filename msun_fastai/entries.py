"""What is compared, as it is written: `METHOD[+WORD...][@SCALES]`, and the recipe of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msun_fastai.choices import check_choices, method_recipe, resolved
from msun_fastai.errors import UserError, did_you_mean
from msun_fastai.models.methods import ALIGNMENTS, CONSISTENCIES, find_method
from msun_fastai.models.sharing import NORMS
from msun_fastai.recipe import Recipe
from msun_fastai.scales import parse_scales

# what a word is recognised as; no word is in two of them
WORDS = {
    "consistency.kind": CONSISTENCIES,
    "model.norm": NORMS,
    "model.alignment": ALIGNMENTS,
}


@dataclass(frozen=True)
class Entry:
    """A method as it is to be trained. name: as it is written in full, a folder's name too.
    values: of a recipe, by dotted keys, on top of what is the method's own."""

    name: str
    method: str
    values: dict[str, Any] = field(default_factory=dict)


def parse_entry(text: str) -> Entry:
    """An entry from its words, each recognised by what it is. Raises `UserError`.

    >>> parse_entry("snet+native+sd@S2")
    Entry(name='snet+sd+native@128,224', ...)
    """
    front, at, sides = text.partition("@")
    method, *words = front.split("+")
    try:
        find_method(method)
        values: dict[str, Any] = dict(map(_recognised, words))
        if len(values) < len(words):
            raise UserError(f"{', '.join(words)}: two of them are of one kind; leave one out")
        values = {key: values[key] for key in WORDS if key in values}
        name = "+".join([method, *values.values()])
        if at:
            scales = parse_scales(sides)
            name += f"@{','.join(map(str, scales))}"
            # grids and learnt thresholds are of other scales
            values |= {"model.scales": list(scales), "model.grids": None}
            values["model.routing"] = "nearest"
    except UserError as error:
        raise UserError(f"{text}: {error.message}") from None
    return Entry(name, method, values)


def _recognised(word: str) -> tuple[str, str]:
    for key, known in WORDS.items():
        if word in known:
            return key, word
    every = [known for of in WORDS.values() for known in of]
    raise UserError(f"unknown word {word!r}; {did_you_mean(word, every)}")


def entry_recipe(base: Recipe, entry: Entry) -> Recipe:
    """The recipe of `entry`: `base` with its method, what is the method's own, and its words."""
    return method_recipe(base, entry.method, entry.values)


def entry_recipes(base: Recipe, entries: Sequence[Entry]) -> dict[str, Recipe]:
    """The checked recipe of each of `entries`, by name. Raises `UserError` of one line that names
    the entry, also where two come to the same."""
    found: dict[str, Recipe] = {}
    for entry in entries:
        try:
            recipe = entry_recipe(base, entry)
            check_choices(recipe, None)
        except UserError as error:
            raise UserError(f"{entry.name}: {error.message}") from None
        for name, other in found.items():
            if resolved(other) == resolved(recipe):
                raise UserError(f"{entry.name}: is the same as {name}; leave one out")
        found[entry.name] = recipe
    return found
