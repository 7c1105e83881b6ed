"""Linear probe: a regularised linear classifier on a network's features, the rest left as it is."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from msun_fastai.data.bad import MAX_BAD, refuse_too_many
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.features import Features, cached, extract, fingerprint, scales_policy
from msun_fastai.models.heads import classifiers
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import SavedModel

PROTOCOLS = ("cached", "sgd")  # this file's, or the training of the classifier alone
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
MAX_ITERATIONS = 1_000  # of L-BFGS
ABSENT = -1e4  # bias of a class without training rows: never the answer, and finite in fp16


@dataclass
class Probe:
    """A linear classifier on features as the network gives them.

    weight: float32 (classes, d). bias: float32 (classes,). strength: the C that was chosen, the
    inverse of the L2 penalty. table: accuracy on the validation rows for each strength, ascending.
    notes: what a user should be told, a line each.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    table: list[tuple[float, float]]
    notes: list[str] = field(default_factory=list)

    def logits(self, x: Tensor) -> Tensor:
        """(n, classes) from features (n, d)."""
        return torch.nn.functional.linear(x, self.weight, self.bias)


def fit_probe(
    train: Features,
    valid: Features,
    n_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    max_iterations: int = MAX_ITERATIONS,
    check: Callable[[], object] = bool,
) -> Probe:
    """Multinomial logistic regression on standardised features, fitted on `train` alone.

    The strength is the best on the rows of `valid`; a tie goes to the stronger penalty. The
    standardisation is folded into weight and bias. With two classes the logits are half of
    scikit-learn's, once negative. check: called after every fit; it may raise to end it. Raises
    `UserError`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    if not strengths or not all(math.isfinite(c) and c > 0 for c in strengths):
        raise UserError(f"probe.strengths: {list(strengths)}: give one or more positive numbers")
    for name, part in (("training", train), ("validation", valid)):
        if not len(part.x):
            raise UserError(f"linear probe: no {name} features")
        if not part.x.isfinite().all():
            raise UserError(f"linear probe: {name} features are not finite; the network is damaged")
    codes = train.codes.numpy()
    if len(np.unique(codes)) < 2:
        raise UserError("linear probe: all training features are of one class; it needs two")
    scaler = StandardScaler()
    x = scaler.fit_transform(train.x.numpy())
    # each fit starts from the one with the next stronger penalty
    model = LogisticRegression(max_iter=max_iterations, warm_start=True)
    table: list[tuple[float, float]] = []
    notes: list[str] = []
    best: Probe | None = None
    for strength in sorted(set(strengths)):
        model.set_params(C=strength)
        notes += _fitted(model, x, codes, strength)
        weight, bias = _folded(model, scaler, n_classes)
        probe = Probe(weight, bias, strength, table, notes)
        right = probe.logits(valid.x).argmax(1) == valid.codes
        table.append((strength, right.double().mean().item()))
        if best is None or table[-1][1] > dict(table)[best.strength]:
            best = probe
        check()
    assert best is not None
    return best


def _fitted(model: Any, x: np.ndarray, codes: np.ndarray, strength: float) -> list[str]:
    """Fit `model`; returns a note where that ended too early."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(x, codes)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if not any(issubclass(w.category, ConvergenceWarning) for w in caught):
        return []
    steps = int(np.max(model.n_iter_))
    return [f"strength {strength:g}: stopped after {steps} steps, not converged"]


def _folded(model: Any, scaler: Any, n_classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, d) and bias (classes,) for features that are not standardised."""
    coef, intercept = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    if len(coef) == 1:  # two classes: scikit-learn has the difference of their logits
        coef, intercept = np.stack([-coef[0], coef[0]]) / 2, np.r_[-intercept, intercept] / 2
    weight = np.zeros((n_classes, coef.shape[1]))
    bias = np.full(n_classes, ABSENT)
    weight[model.classes_] = coef / scaler.scale_
    bias[model.classes_] = intercept - weight[model.classes_] @ scaler.mean_
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


@torch.no_grad()
def set_classifier(net: MultiScaleNet, probes: Sequence[Probe]) -> None:
    """Write `probes` into the classifiers of `net`, one for each of its heads."""
    layers = classifiers(net)
    if len(probes) != len(layers):
        raise ValueError(f"{len(probes)} probes for {len(layers)} classifiers")
    for layer, probe in zip(layers, probes):
        if layer.weight.shape != probe.weight.shape:
            raise ValueError(f"a probe of {probe.weight.shape} for {layer}")
        layer.weight.copy_(probe.weight)
        layer.bias.copy_(probe.bias)


def linear_probe(
    saved: SavedModel,
    train: Iterable[Sample],
    valid: Iterable[Sample],
    strengths: Sequence[float] = STRENGTHS,
    views: str = "native",
    bs: int = 64,
    workers: int = 0,
    folder: Path | str = ".",
    on_bad: str = "skip",
    max_bad: float = MAX_BAD,
    check: Callable[[], object] = bool,
    refit: bool = False,
) -> tuple[SavedModel, dict[str, Any]]:
    """`saved` with classifiers fitted on the features of `train`, and a report.

    valid: what the strength is chosen on. refit: the classifier of that strength is then fitted
    again, on both, as it should be where `valid` was held out of the training part. One classifier
    for each head: of private heads, on the rows of its scale. The features are kept in
    `folder/features`. The network of `saved`, which has the classes of the samples already, is
    changed in place.

    The report: `features` (d), `views`; `images`, `rows` and `unreadable` (the reasons) of each
    part; `heads`, each with its `scales`, `strength`, `table` and `notes`; `seconds` for the
    `features` (what was kept takes next to none) and for the `fit`. check: called after every batch
    and every fit; it may raise to end it. Raises `UserError`.
    """
    net = saved.model
    parts: dict[str, Features] = {}
    started = time.perf_counter()
    for part, samples in (("train", train), ("valid", valid)):
        parts[part] = cached(
            Path(folder) / "features" / f"{part}.safetensors",
            fingerprint(saved, samples, views),
            partial(extract, saved, samples, views, bs, workers, on_bad, check),
        )
        if part == "train":
            bad = parts[part].unreadable
            refuse_too_many(bad, len(bad), parts[part].seen + len(bad), max_bad)
    taken = time.perf_counter()
    heads = _rows_of_heads(net, parts)
    n_classes = net.config.n_classes
    probes = [fit_probe(*rows, n_classes, strengths, check=check) for rows in heads]
    if refit:
        probes = [_again(*rows, n_classes, probe, check) for rows, probe in zip(heads, probes)]
    fitted = time.perf_counter()
    set_classifier(net, probes)
    return saved, {
        "features": parts["train"].x.shape[1],
        "views": scales_policy(net, views),
        "images": {name: part.seen for name, part in parts.items()},
        "rows": {name: len(part.x) for name, part in parts.items()},
        "unreadable": {name: part.unreadable for name, part in parts.items()},
        "heads": [_about(rows[0], probe) for rows, probe in zip(heads, probes)],
        "seconds": {"features": taken - started, "fit": fitted - taken},
    }


def _again(
    train: Features, valid: Features, n_classes: int, chosen: Probe, check: Callable[[], object]
) -> Probe:
    """The probe of the strength that was chosen, fitted on the rows of both parts."""
    probe = fit_probe(train.joined(valid), valid, n_classes, [chosen.strength], check=check)
    return replace(probe, table=chosen.table, notes=[*chosen.notes, *probe.notes])


def _about(rows: Features, probe: Probe) -> dict[str, Any]:
    return {
        "scales": rows.scales.unique().tolist(),
        "strength": probe.strength,
        "table": [{"strength": c, "accuracy": a} for c, a in probe.table],
        "notes": probe.notes,
    }


def _rows_of_heads(
    net: MultiScaleNet, parts: dict[str, Features]
) -> list[tuple[Features, Features]]:
    """The training and validation rows on which each head's classifier is fitted."""
    train, valid = parts["train"], parts["valid"]
    if len(classifiers(net)) == 1:
        return [(train, valid)]
    return [(train.at(scale), valid.at(scale)) for scale in net.entry_scales]
