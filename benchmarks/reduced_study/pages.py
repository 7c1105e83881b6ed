"""RESULTS.md, the JSON behind it and its plots, from what the trainings came to.

The words are in answers.toml; every figure in them is a field such as `{r[mst].mean}`,
`{r[mst][64]}` (size), `{d[msun+sd less mst].mean}`, that is filled in from the JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from questions import NATIVE, QUESTIONS, Question
from results import BY_SIZE, Figure, Results, Way
from trials import RULES, SCALES, SIZES

from msun_fastai.figures import draw_accuracy, draw_matrix, draw_means
from msun_fastai.files import replacing, write_json
from msun_fastai.plots import save_figure
from msun_fastai.recipe import tomllib

HERE = Path(__file__).parent
SHOWN = (16, 24, 32, 40, 48, 56, 64)  # of the sizes, in tables
METHODS = ("vanilla", "mst", "msun+si", "best", "best by size")  # in the first picture


class Differences:
    """`d["a less b"]`: a trial's accuracies less another's, seed by seed."""

    def __init__(self, results: Results):
        self.results = results

    def __getitem__(self, name: str) -> Difference:
        one, _, other = name.partition(" less ")
        return Difference(self.results[one], self.results[other])


class Difference:
    """How far apart two trials are, in points."""

    def __init__(self, one: Way, other: Way):
        self.one, self.other = one, other

    def __getitem__(self, size: int) -> str:
        return (self.one[size] - self.other[size]).percent("+")

    @property
    def mean(self) -> str:
        """Of the means over the sizes."""
        return (self.one.mean - self.other.mean).percent("+")


README = HERE.parent.parent / "README.md"
MARKS = "<!-- the study -->\n", "<!-- /the study -->\n"  # around what README.md has of it
IN_COST = (  # those between which the picture is to decide; all are in its table
    *(
        "vanilla",
        "vanilla by size",
        "vanilla@32",
        "vanilla@32 by size",
        "mst",
        "msun+none",
        "msun+si",
        "msun+sd",
        "best",
    ),
    *("best by size", "san", "rsnet", *(f"msun+none {grids} per_scale" for grids in NATIVE)),
)
IN_README = (
    *("vanilla", "mst", "snet", "msun+none", "msun+si", "best", "best by size"),
    *("vanilla by size", "mst by size"),
    *("san", "rsnet", "msun+none 4/8/16 per_scale"),
)


def write_pages(found: dict[str, Any], file: Path, page: Path) -> None:
    """Write the JSON, the plots beside it, the page, and of `micro` the table in README.md."""
    write_json(file, found)
    draw(Results(found), file.parent / file.stem)
    rewrite(page, results_page(found, file, page))
    if found["size"] != "micro":
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    rewrite(README, "".join((before, MARKS[0], readme_part(found), MARKS[1], after)))


def rewrite(file: Path, text: str) -> None:
    """Write `text`, all of it or nothing."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def results_page(found: dict[str, Any], file: Path, page: Path) -> str:
    """The page, from the figures alone."""
    results, chosen = Results(found), Results(found, "valid")
    answers = tomllib.loads((HERE / "answers.toml").read_text(encoding="utf-8"))
    fields = fields_of(found)
    where = file.with_suffix("").relative_to(page.parent).as_posix()
    parts = [answers["head"].format(**fields, **about(found), json=file.relative_to(page.parent))]
    for question in QUESTIONS:
        words = answers["answer"][str(question.number)].format(**fields)
        parts.append(f"## {question.number}. {question.title}\n\n{words.strip()}\n")
        parts += tables(question, {"test": results, "valid": chosen}[question.part])
        parts += [f"![{alt}]({where}/{name})\n" for name, alt in PICTURES.get(question.number, ())]
    parts.append(answers["tail"].format(**fields))
    return "\n".join(part.strip() + "\n" for part in parts)


def readme_part(found: dict[str, Any]) -> str:
    """What README.md has of a study beside its picture: the methods together, and the words."""
    results = Results(found)
    words = tomllib.loads((HERE / "answers.toml").read_text(encoding="utf-8"))["readme"]
    return "\n".join(
        (
            accuracy_table([results[name] for name in IN_README if name in results]),
            words.strip().format(**fields_of(found), **about(found)) + "\n",
        )
    )


def fields_of(found: dict[str, Any]) -> dict[str, Any]:
    """What the words may name: figures of the part to report on, and of the part to choose on."""
    results, chosen = Results(found), Results(found, "valid")
    return {"r": results, "d": Differences(results), "v": chosen, "dv": Differences(chosen)}


def about(found: dict[str, Any]) -> dict[str, Any]:
    """What all figures were measured by: commits, devices, time."""
    runs = [run for trial in found["trials"].values() for run in trial["runs"]]
    commits = sorted({run["commit"][:10] for run in runs if run["commit"]})
    return {
        "trials": len(found["trials"]),
        "runs": len(runs),
        "commits": ", ".join(commits),
        "devices": ", ".join(sorted({run["device"] for run in runs})),
        "threads": ", ".join(sorted({str(run["threads"]) for run in runs})),
        "minutes": f"{sum(run['seconds'] for run in runs) / 60:.0f}",
        "train_images": found["trials"]["vanilla"]["runs"][0]["train_images"],
        "valid_images": found["trials"]["vanilla"]["runs"][0]["valid"]["routed"]["images"],
        "test_images": found["trials"]["vanilla"]["runs"][0]["test"]["routed"]["images"],
    }


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown, the first column to the left and the others to the right."""
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines) + "\n"


def tables(question: Question, results: Results) -> list[str]:
    """The tables that answer a question."""
    ways = [results[name] for name in question.trials]
    if question.number == 9:
        return [transfer_table(ways)]
    if question.number == 11:
        return [accuracy_table([results[f"{w.name}{BY_SIZE}"] for w in ways]), gain_table(ways)]
    found = [accuracy_table(ways)]
    if question.number == 3:
        found += [size_table(ways), subnet_table(results["msun+none"])]
    if question.number == 5:
        found.append(alignment_table(ways, results))
    if question.number == 7:
        found += [rule_table(ways), own_table(results)]
    return found


def accuracy_table(ways: Sequence[Way]) -> str:
    """Accuracy at some of the sizes and in the mean over all, with what it costs."""
    heads = ["", *map(str, SHOWN), f"mean of {len(SIZES)}", "MACs (M)", "training (s)"]
    return table(
        heads,
        (
            [w.name, *(str(w[s]) for s in SHOWN), w.mean, f"{w.macs / 1e6:.1f}", f"{w.seconds:.0f}"]
            for w in ways
        ),
    )


def size_table(ways: Sequence[Way]) -> str:
    """Parameters and cost (Table V)."""
    rows = ((w.name, f"{w.routed['params'] / 1e6:.2f}", f"{w.macs / 1e6:.1f}") for w in ways)
    return table(["", "parameters (M)", "mean MACs (M)"], rows)


def subnet_table(way: Way) -> str:
    """Every subnet at every size (Table IV), the mean over the seeds."""
    subnets = [run[way.part]["subnets"] for run in way.found["runs"]]
    rows = []
    for i, scale in enumerate(SCALES, 1):
        shares = np.mean([of[str(scale)] for of in subnets], 0)
        rows.append([f"f_{i} ({scale})", *(f"{100 * shares[SIZES.index(s)]:.1f}" for s in SHOWN)])
    return table([f"{way.name}: subnet", *map(str, SHOWN)], rows)


def alignment_table(ways: Sequence[Way], results: Results) -> str:
    """Cost on an even mix of the three scales beside vanilla's, accuracy beside canonical's."""
    plain, canonical = results["vanilla"], results["msun+none"]
    rows = []
    for way in ways[1:]:
        saved = 1 - way.macs_at(SCALES) / plain.macs_at(SCALES)
        mean = (way.mean - canonical.mean).percent("+")
        at = [(way[s] - canonical[s]).percent("+") for s in SCALES]
        rows.append(
            [way.name, f"{way.macs_at(SCALES) / 1e6:.1f}", f"{100 * saved:.0f} %", mean, *at]
        )
    heads = ["", "MACs on an even mix (M)", "saved against vanilla", "accuracy less canonical's"]
    return table([*heads, *(f"at {s}" for s in SCALES)], rows)


def rule_table(ways: Sequence[Way]) -> str:
    """Mean accuracy and cost under each routing rule."""
    rows = []
    for way in ways:
        cells = [way.rule(name) for name in RULES]
        rows.append([way.name, *(f"{of} ({macs / 1e6:.1f})" for of, macs in cells)])
    return table(["mean accuracy (MACs in M)", *RULES], rows)


def gain_table(ways: Sequence[Way]) -> str:
    """What statistics by input size add to each trial, in points."""
    rows = []
    for way in ways:
        after = Way(way.name, way.found, way.part, "by_size")
        gains = [(after[s] - way[s]).percent("+") for s in SHOWN]
        rows.append([way.name, *gains, (after.mean - way.mean).percent("+")])
    return table(["gained (points)", *map(str, SHOWN), f"mean of {len(SIZES)}"], rows)


def own_table(results: Results) -> str:
    """Images of every size through the network at that size, beside resizing to the scale."""
    rows = []
    for name, way in ((name, results[name]) for name in results.found["trials"]):
        if "native" in way.found["runs"][0].get(way.part, {}):  # none of other data
            cells = [(way.mean, way.macs), *(way.at_own_size(how) for how in ("native", "ideal"))]
            rows.append([name, *(f"{of} ({macs / 1e6:.1f})" for of, macs in cells)])
    return table(["mean accuracy (MACs in M)", "resized", "proxy", "ideal"], rows)


def transfer_table(ways: Sequence[Way]) -> str:
    """Accuracy on other datasets, images routed by their own sizes (Table III)."""
    found: dict[str, dict[str, Figure]] = {}
    for way in ways:
        start, _, where = way.name.partition(" to ")
        found.setdefault(start, {})[where] = way.own
    heads = list(next(iter(found.values())))
    return table(["from", *heads], ([start, *of.values()] for start, of in found.items()))


PICTURES = {
    1: (("accuracy.png", "accuracy against input size, with the deviation over the seeds"),),
    3: (("subnets.png", "accuracy of every subnet at every size"),),
    6: (("cost.png", "mean accuracy against mean cost"),),
}


def draw(results: Results, folder: Path) -> None:
    """The pictures of the page."""
    ways = [results[name] for name in METHODS if name in results]
    rows = [row for way in ways for row in size_rows(way)]
    save_figure(draw_accuracy(rows), folder / "accuracy.png")
    means = [mean_row(results[name]) for name in IN_COST if name in results]
    save_figure(draw_means(means), folder / "cost.png")
    way = results["msun+none"]
    subnets = [run[way.part]["subnets"] for run in way.found["runs"]]
    cells = [
        {"subnet": scale, "size": size, "accuracy": share, "routed": scale == to}
        for scale in SCALES
        for size, to, share in zip(
            SIZES, way.routed["subnet"], np.mean([of[str(scale)] for of in subnets], 0)
        )
    ]
    save_figure(draw_matrix(cells), folder / "subnets.png")


def size_rows(way: Way) -> list[dict[str, Any]]:
    """A row a size for the picture, the band a deviation to either side."""
    rows = []
    for size, subnet, macs in zip(SIZES, way.routed["subnet"], way.routed["macs"]):
        mean, apart = way[size].mean, way[size].deviation or 0.0
        about = {"model": way.name, "size": size, "subnet": subnet, "macs": macs}
        rows.append({**about, "accuracy": mean, "low": mean - apart, "high": mean + apart})
    return rows


def mean_row(way: Way) -> dict[str, Any]:
    """Mean accuracy and cost for the picture."""
    mean, apart = way.mean.mean, way.mean.deviation or 0.0
    about = {"model": way.name, "macs": way.macs, "accuracy": mean}
    return {**about, "low": mean - apart, "high": mean + apart}
