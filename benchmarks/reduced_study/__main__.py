"""The evidence: a reduced study of what the papers claim, and of which combination is best.

    python benchmarks/reduced_study micro --data-root DIR
    python benchmarks/reduced_study micro --data-root DIR --question 6
    python benchmarks/reduced_study micro --data-root DIR --trial msun+none --seeds 1

Trains what is not yet there, `--jobs` beside each other; what was stopped goes on. `--write` makes
RESULTS.md, the JSON behind it and the plots of a whole study. Whatever was trained is printed
beside the figures of the JSON that is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from questions import QUESTIONS, TRIALS
from results import Results, Way, collected
from rich.console import Console
from trials import SIZES, Place, Trial, plan, train

from msun_fastai.cli.output import print_table
from msun_fastai.errors import OneLine, Stopped, did_you_mean
from msun_fastai.memory import keep_freed_memory

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
SHOWN = (16, 24, 32, 48, 64)  # of the 13 sizes


def chosen(questions: list[int], names: list[str]) -> list[Trial]:
    """The trials of some questions, and some more by name, with those that they start from."""
    wanted = [name for q in QUESTIONS if q.number in questions for name in q.trials] + names
    if not wanted:
        return list(TRIALS.values())
    for name in wanted:
        if name not in TRIALS:
            sys.exit(f"trial {name!r} is unknown; {did_you_mean(name, TRIALS)}")
    found: dict[str, Trial] = {}
    for name in wanted:
        above: Trial | None = TRIALS[name]
        while above is not None:
            found[above.name] = above
            above = TRIALS[above.parent] if above.parent is not None else None
    return [trial for trial in TRIALS.values() if trial.name in found]


def results_file(size: str) -> Path:
    """The committed figures of a study."""
    return RESULTS / f"reduced_study_{size}.json"


def page(size: str) -> Path:
    """What is written of a study for readers."""
    return RESULTS.parent / ("RESULTS.md" if size == "micro" else f"RESULTS-{size}.md")


def row(way: Way, before: Results | None, part: str) -> list[Any]:
    """What a trial came to, and what was written of it."""
    if part not in way.found["runs"][0]:
        return [way.name, *("" for _ in SHOWN), str(way.own), "", f"{way.seconds:.0f}", ""]
    figures = [str(way[size]) for size in SHOWN] + [str(way.mean), f"{way.macs / 1e6:.1f}"]
    known = str(before[way.name].mean) if before is not None and way.name in before else ""
    return [way.name, *figures, f"{way.seconds:.0f}", known]


def main() -> None:
    """Train, test, print; with `--write` the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("size", choices=("micro", "full"))
    parser.add_argument("--data-root", required=True, help="where tiny_imagenet100 and others are")
    parser.add_argument("--runs", type=Path, help="runs/reduced_study/SIZE by default")
    parser.add_argument("--question", type=int, nargs="*", default=[])
    parser.add_argument("--trial", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, help="of each trial, instead of its own 1 or 3")
    parser.add_argument("--jobs", type=int, default=2, help="trainings beside each other")
    parser.add_argument("--device")
    parser.add_argument("--part", choices=("valid", "test"), default="test")
    parser.add_argument("--write", action="store_true", help="RESULTS.md, JSON and plots")
    given = parser.parse_args()
    keep_freed_memory()
    folder = given.runs or Path("runs/reduced_study") / given.size
    place = Place(given.size, given.data_root, folder, given.jobs, given.device)
    console = Console(width=160)
    waves = plan(place, chosen(given.question, given.trial), given.seeds)
    train(place, waves, console)
    found = collected(waves, given.size)
    file = results_file(given.size)
    before = None
    if file.is_file():
        before = Results(json.loads(file.read_text(encoding="utf-8")), given.part)
    results = Results(found, given.part)
    heads = ["trial", *map(str, SHOWN), f"mean of {len(SIZES)}", "MACs (M)", "seconds", "written"]
    rows = [row(results[name], before, given.part) for name in found["trials"]]
    print_table(console, f"{given.size}: accuracy (%), {given.part} part", heads, rows)
    if given.write:
        from pages import write_pages

        write_pages(found, file, page(given.size))


if __name__ == "__main__":
    try:
        main()
    except Stopped as error:
        sys.exit(f"{error.message}; the same command goes on")
    except OneLine as error:
        sys.exit(error.message)
