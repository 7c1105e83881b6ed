"""What the study asks, and the trainings that answer it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trials import Trial

SEEDS = 3  # where a claim depends on it
NATIVE = {"8/8/16": [8, 8, 16], "4/8/16": [4, 8, 16]}  # grids of the three subnets; canonical: 16
WEIGHTS = (0.01, 0.1, 1.0, 10.0)  # of the SI term
DISTANCES = ("euclidean", "cosine")
DEPTHS = (0, 1, 2, 3)  # blocks of a subnet
SETS = {"S2": [32, 64], "S3": [16, 32, 64], "S4": [16, 32, 48, 64]}
TRANSFERRED = ("vanilla", "mst", "msun+none", "san", "rsnet")
TARGETS = {"cifar10": "native", "caltech101": "down"}  # which views an image of theirs gives
ALIGNED = 4  # epochs of the alignment in what was tried for the best
TENTH = {"train.epochs": 1, "train.schedule": "cosine", "train.warmup": 0.1}


@dataclass(frozen=True)
class Question:
    """A question, and the trials whose figures answer it. part: the images of its tables."""

    number: int
    title: str
    trials: tuple[str, ...]
    part: str = "test"


def network(name: str, method: str, seeds: int = 1, values: Any = None, **how: Any) -> Trial:
    """A trial on the study's own dataset."""
    return Trial(name, method, values or {}, seeds, **how)


def msun(name: str, seeds: int = 1, values: Any = None, **how: Any) -> Trial:
    """An MSUN; without a term between its views, unless `values` say so."""
    return network(name, "msun", seeds, {"consistency.kind": "none", **(values or {})}, **how)


def tied(kind: str, norm: str, seeds: int = SEEDS) -> Trial:
    """An MSUN by its term between views and by its batch norms."""
    name = f"msun+{kind}" if norm == "shared" else f"msun+{kind}+{norm}"
    values = {"consistency.kind": kind, "model.norm": norm}
    return msun(name, seeds, values, rules=True, by_size=kind == "none")


def on_grids(grids: str, norm: str) -> Trial:
    """An MSUN whose deep network runs on each subnet's own grid."""
    name = f"msun+none {grids}" + ("" if norm == "shared" else f" {norm}")
    values = {"model.alignment": "native", "model.grids": NATIVE[grids], "model.norm": norm}
    return msun(name, SEEDS, values, by_size=norm == "per_scale")


def with_si(name: str, **values: Any) -> Trial:
    """An MSUN with the SI term as `consistency.*` say."""
    given = {f"consistency.{key}": value for key, value in values.items()}
    return msun(f"msun+si {name}", values={"consistency.kind": "si", **given})


def converted(name: str, seeds: int = 1, values: Any = None, **how: Any) -> Trial:
    """An MSUN that starts from the trained single-scale network, its subnets aligned without labels
    before everything is trained."""
    given = {"train.align": ALIGNED, "train.epochs": 2, **(values or {})}
    how = {"verb": "finetune", "weights": "vanilla", "rules": True, **how}
    return msun(name, seeds, given, **how)


def best() -> Trial:
    """What of all that was tried the part to choose on speaks for."""
    values = {"consistency.kind": "sd", "model.norm": "per_scale", "train.epochs": 4}
    return converted("best", SEEDS, values, by_size=True)


def tried() -> list[Trial]:
    """What was tried for the best combination, one thing at a time; chosen on the held-out part."""
    sd, own = {"consistency.kind": "sd"}, {"model.norm": "per_scale"}
    low, both = {**sd, "train.lr": 5e-4}, {**sd, **own}
    return [
        *(
            converted("try aligned" + words, values=values)
            for words, values in (
                ("", {}),
                (", sd", sd),
                (", sd, low rate", low),
                (", sd, low rate, reduced", {**low, "train.reduced": 0.5}),
                (", sd, low rate, B2", {**low, "model.blocks": 2}),
                (", per_scale", own),
                (", sd, per_scale", both),
                (", sd, per_scale, rate 0.004", {**both, "train.lr": 4e-3}),
                (", sd, per_scale, reduced", {**both, "train.reduced": 0.5}),
                (", sd, per_scale, B2", {**both, "model.blocks": 2}),
                (", sd, per_scale, 8 of alignment", {**both, "train.align": 8}),
                *(
                    (
                        f", sd, per_scale, {grids}",
                        {**both, "model.alignment": "native", "model.grids": NATIVE[grids]},
                    )
                    for grids in NATIVE
                ),
            )
        ),
        *(
            msun(f"try {words}", values=values, rules=True)
            for words, values in (
                ("rate 0.004", {"train.lr": 4e-3}),
                ("rate 0.001", {"train.lr": 1e-3}),
                ("sd, per_scale, rate 0.004", {**both, "train.lr": 4e-3}),
                ("16 epochs", {"train.epochs": 16}),
                ("label smoothing 0.1", {"train.label_smoothing": 0.1}),
                ("sd, reduced", {"consistency.kind": "sd", "train.reduced": 0.5}),
                (
                    "sd, per_scale, 4/8/16",
                    {**both, "model.alignment": "native", "model.grids": NATIVE["4/8/16"]},
                ),
            )
        ),
        *(
            network(f"try {method}, {words}", method, values=values)
            for method in ("mst", "vanilla")
            for words, values in (
                ("rate 0.004", {"train.lr": 4e-3}),
                ("16 epochs", {"train.epochs": 16}),
            )
        ),
    ]


def brought(start: Trial, dataset: str, verb: str) -> Trial:
    """A trained network on another dataset, whose images are routed by their own sizes."""
    values: dict[str, Any] = {
        "data.dataset": dataset,
        "data.classes": None,
        "data.carve": None,
        "train.epochs": 3,
        "consistency.kind": "none",
        # images of one scale, or none above their own, where there is more than one subnet
        "train.views": "all" if start.method in ("vanilla", "mst") else TARGETS[dataset],
    }
    name = f"{start.name} to {dataset} {verb}"
    return Trial(name, start.method, values, start=start.name, verb=verb)


def _trials() -> dict[str, Trial]:
    several = [
        network("vanilla", "vanilla", SEEDS, own_sizes=True, by_size=True),
        network("vanilla@32", "vanilla", SEEDS, {"model.scales": [32]}, by_size=True),
        network("mst", "mst", SEEDS, own_sizes=True, by_size=True),
        best(),
        *(tied(kind, "shared") for kind in ("none", "si", "sd", "ensemble")),
        *(tied(kind, "per_scale") for kind in ("none", "si", "sd", "ensemble")),
        network("mst+si", "mst", SEEDS, {"consistency.kind": "si"}),
        network("snet", "snet", SEEDS, {"consistency.kind": "none"}),
        network("snet+si", "snet", SEEDS, {"consistency.kind": "si"}),
        *(on_grids(grids, norm) for grids in NATIVE for norm in ("shared", "per_scale")),
        network("san", "san", SEEDS, rules=True, own_sizes=True, by_size=True),
        network("san+none", "san", SEEDS, {"consistency.kind": "none"}),
        network("rsnet", "rsnet", SEEDS, rules=True, own_sizes=True, by_size=True),
        network("rsnet+none", "rsnet", SEEDS, {"consistency.kind": "none"}),
    ]
    single = [
        *(msun(f"msun+none B{n}", values={"model.blocks": n}) for n in DEPTHS if n != 1),
        *(
            msun(f"msun+none {name}", values={"model.scales": scales})
            for name, scales in SETS.items()
            if name != "S3"
        ),
        *(with_si(f"weight {w:g}", weight=w) for w in WEIGHTS if w != 1),
        *(with_si(f"lambda {floor:g}", floor=floor) for floor in (0.05, 0.2)),
        *(with_si(d, distance=d) for d in DISTANCES),
        with_si("detach", detach=True),
        *(
            msun(f"msun+none reduced {r:g}", values={"train.reduced": r}, rules=True)
            for r in (0.5, 1.0)
        ),
        *(
            msun(f"msun+none from vanilla{words}", values={**TENTH, **more}, **how)
            for words, more, how in (
                ("", {}, {"verb": "finetune", "weights": "vanilla"}),
                (", aligned", {"train.align": 1}, {"verb": "finetune", "weights": "vanilla"}),
            )
        ),
        msun("msun+none a tenth", values=TENTH),
    ]
    known = {trial.name: trial for trial in (*several, *single, *tried())}
    for start in TRANSFERRED:
        for dataset in TARGETS:
            for verb in ("finetune", "linear-probe"):
                trial = brought(known[start], dataset, verb)
                known[trial.name] = trial
    return known


TRIALS = _trials()


def _starting(*words: str) -> tuple[str, ...]:
    return tuple(name for name in TRIALS if name.startswith(words))


QUESTIONS = (
    Question(1, "Vanilla, multi-scale training and MSUN", ("vanilla", "mst", "msun+si", "best")),
    Question(
        2,
        "Six variants: subnets, a unified network, the SI term",
        ("mst", "mst+si", "snet", "snet+si", "msun+none", "msun+si"),
    ),
    Question(
        3,
        "How deep a subnet, how many of them",
        ("msun+none", *_starting("msun+none B", "msun+none S")),
    ),
    Question(4, "The SI term", ("msun+none", "msun+si", *_starting("msun+si "))),
    Question(
        5,
        "Alignment: canonical or native",
        (
            *("vanilla", "msun+none", "msun+none+per_scale"),
            *_starting(*(f"msun+none {grids}" for grids in NATIVE)),
        ),
    ),
    Question(
        6,
        "What ties the views",
        (
            *(
                "vanilla",
                "vanilla@32",
                "mst",
                *(t for t in TRIALS if t.startswith("msun+") and " " not in t),
            ),
            *("san", "san+none", "rsnet", "rsnet+none", "best"),
        ),
    ),
    Question(
        7,
        "Between the scales",
        ("msun+none", *_starting("msun+none reduced"), "san", "rsnet"),
    ),
    Question(
        8,
        "From a trained network",
        ("vanilla", "msun+none", "msun+none a tenth", *_starting("msun+none from")),
    ),
    Question(
        9,
        "Transfer",
        tuple(name for name in TRIALS if " to " in name),
    ),
    Question(
        10,
        "What was tried for the best combination",
        ("vanilla", "mst", "msun+none", "msun+sd", "best", *_starting("try ")),
        "valid",
    ),
    Question(
        11,
        "Statistics of batch norms by input size",
        tuple(name for name, trial in TRIALS.items() if trial.by_size),
    ),
)
