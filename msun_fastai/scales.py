"""Scales, routing and views policies: pure functions on sizes, no tensors.

A *scale* is one quantized input side; the largest is the *canonical* scale. Every size here is a
side in pixels, and an image's size is its shorter side.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

from msun_fastai.errors import UserError, did_you_mean

DEFAULT_SCALES = (32, 128, 224)  # small, medium, large: Section VI-B
# S2 to S5 of Table V. The paper gives the scales of S3 alone; S4 and S5 are as evenly spaced, and
# S2 is without 32: its accuracy there, 36.0, is that of S3's f_2
SCALE_SETS = {
    "S2": (128, 224),
    "S3": DEFAULT_SCALES,
    "S4": (32, 96, 160, 224),
    "S5": (32, 80, 128, 176, 224),
}
SHOWN = 10  # numbers that an error repeats
LONGEST = 80  # characters of a text that an error repeats
LARGEST_SCALE = 4096  # a batch of one such image takes gigabytes already
# of the bins in which native sizes are counted, each up to its edge
EDGES = (16, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024, 2048, 4096)
SWEEP_STEPS = 12  # Table II tests 32 to 224 in 12 steps of 16


def check_scales(scales: Sequence[int], key: str = "scales") -> tuple[int, ...]:
    """`scales` as a tuple of ascending positive sides, or a `UserError` that says what is wrong.

    key: what the error calls them.
    """
    given = ",".join(str(s) for s in scales[:SHOWN]) + (",..." if len(scales) > SHOWN else "")
    if not scales:
        raise UserError(f"{key}: none given; name at least one, such as 32,128,224")
    if any(isinstance(s, bool) or not 1 <= s <= LARGEST_SCALE or int(s) != s for s in scales):
        raise UserError(
            f"{key}: {given}: a side is a whole number of pixels from 1 to {LARGEST_SCALE}"
        )
    out = tuple(int(s) for s in scales)
    if any(a >= b for a, b in pairwise(out)):
        raise UserError(
            f"{key}: {given}: not ascending; write {','.join(map(str, sorted(set(out))))}"
        )
    return out


def parse_scales(text: str) -> tuple[int, ...]:
    """`32,128,224`, or `S2` to `S5`, as scales. Raises `UserError`.

    >>> parse_scales("S4")
    (32, 96, 160, 224)
    """
    return SCALE_SETS.get(text.upper()) or check_scales(parse_numbers("scales", text))


def parse_sizes(text: str) -> tuple[int, ...]:
    """`32,48,64`, or `32:224:16` with its end, as ascending sides in pixels. Raises `UserError`.

    >>> parse_sizes("32:64:16")
    (32, 48, 64)
    """
    if ":" not in text:
        return check_scales(sorted(parse_numbers("sizes", text)), "sizes")
    try:
        start, stop, step = (int(part) for part in text.split(":"))
        if start > stop:
            raise UserError(f"sizes: {text}: starts above its end")
        # nothing beyond the first that is too large is looked at
        return check_scales(range(start, min(stop, LARGEST_SCALE + step) + 1, step), "sizes")
    except ValueError:
        raise UserError(
            f"sizes: {text}: write START:STOP:STEP, such as 32:224:16, or numbers with commas"
        ) from None


def parse_numbers(key: str, text: str) -> list[int]:
    """Whole numbers with commas between them, or a `UserError` that names `key`."""
    or_set = f", or {' '.join(SCALE_SETS)}" if key == "scales" else ""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(
            f"{key}: {text}: write whole numbers with commas, such as 32,128,224{or_set}"
        ) from None


ROUTING = ("nearest", "up", "calibrated")
NEVER = 1_000_000  # as a threshold: no image has so long a side


def route(size: int, scales: Sequence[int], rule: str = "nearest") -> int:
    """The scale that an image of `size` goes to under the routing `rule`, see `thresholds`.

    >>> route(64, (32, 128, 224)), route(64, (32, 128, 224), "up")
    (32, 128)
    """
    # Eq. 6: the number of thresholds below the size is the index of its scale
    return scales[bisect_left(thresholds(tuple(scales), rule), size)]


@cache
def thresholds(scales: tuple[int, ...], rule: str) -> tuple[float, ...]:
    """The largest size that goes to each scale but the canonical one, which takes the rest.

    nearest: the scale closest to the size (Eq. 6); a tie goes to the smaller one, which costs less.
    up: the smallest scale that is not below the size, so that no pixel is thrown away; this is what
    Table II shows in fact: its accuracy at 64 is that of f_2 and at 160 that of f_3.
    calibrated:40,150: these very thresholds, learnt from images (`calibration.calibrate`). Raises
    `UserError` where they are not one fewer than the scales.
    """
    kind, _, given = check_routing(rule).partition(":")
    if kind == "nearest":
        return tuple((a + b) / 2 for a, b in pairwise(scales))
    if kind == "up":
        return scales[:-1]
    learnt = tuple(parse_numbers("routing", given))
    if len(learnt) != len(scales) - 1:
        raise UserError(
            f"routing: {_short(rule)}: number of thresholds {len(learnt)}, of scales "
            f"{len(scales)}; {len(scales) - 1} would fit"
        )
    return learnt


def check_routing(rule: str) -> str:
    """`rule` if it is `nearest`, `up`, or `calibrated:` with thresholds; else a `UserError`."""
    kind, colon, given = rule.partition(":")
    check_choice("routing", kind if kind == "calibrated" else rule, ROUTING)
    if kind != "calibrated":
        return rule
    if not colon:
        raise UserError(
            "routing: calibrated: its thresholds are missing; `msun-fastai routing --calibrate` "
            "learns them for a trained model, calibrated:40,150 gives them"
        )
    learnt = parse_numbers("routing", given)
    if any(t < 0 for t in learnt) or any(a > b for a, b in pairwise(learnt)):
        raise UserError(f"routing: {_short(rule)}: thresholds are sizes in pixels, ascending")
    return rule


def _short(text: str) -> str:
    """As much of `text` as an error repeats."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def described(rule: str, scales: Sequence[int]) -> str:
    """Which sizes go to which scale, in words.

    >>> described("calibrated:40,1000000", (32, 128, 224))
    'up to 40 px to subnet 32; larger ones to subnet 128'
    """
    parts, below = [], 0.0
    for scale, most in zip(scales, (*thresholds(tuple(scales), rule), NEVER)):
        if most <= below:
            continue  # nothing is left for it
        largest = f"up to {most:g} px" if most < NEVER else "larger ones" if below else "all sizes"
        parts.append(f"{largest} to subnet {scale}")
        below = most
    return "; ".join(parts)


def calibrated(learnt: Sequence[int]) -> str:
    """The routing rule with these thresholds. Raises `UserError` where they do not ascend.

    >>> calibrated((40, 150))
    'calibrated:40,150'
    """
    return check_routing("calibrated:" + ",".join(map(str, learnt)))


def sides_between(scales: Sequence[int], rule: str) -> tuple[range, ...]:
    """The whole sides that the routing `rule` sends to each scale and that are not above it, but
    for the smallest, which has itself alone: below it nothing is between scales.

    A scale to which thresholds leave no such side has itself alone, too.

    >>> sides_between((16, 32, 64), "nearest")
    (range(16, 17), range(25, 33), range(49, 65))
    """
    edges = (*thresholds(tuple(scales), rule), NEVER)
    found = [range(scales[0], scales[0] + 1)]
    for below, above, scale in zip(edges, edges[1:], scales[1:]):
        sides = range(math.floor(below) + 1, min(math.floor(above), scale) + 1)
        found.append(sides or range(scale, scale + 1))
    return tuple(found)


VIEWS = ("all", "native", "down")


def target_scale(size: int, scales: Sequence[int], views: str, rule: str = "nearest") -> int:
    """The side to which a training image of native `size` is resized before its views are made.

    `all` makes every view from the canonical one; `native` and `down` start at the image's own
    routed scale, so that nothing is upsampled beyond it. Raises `UserError` for another policy.
    """
    check_choice("views", views, VIEWS)
    return scales[-1] if views == "all" else route(size, scales, rule)


def view_scales(side: int, scales: Sequence[int], views: str) -> tuple[int, ...]:
    """The scales of the views that a batch of `side` gives under the policy `views`, ascending.

    `all`: every scale (Algorithm 1). `native`: its own. `down`: its own and all smaller ones.
    Raises `UserError` for another policy.
    """
    check_choice("views", views, VIEWS)
    if views == "all":
        return tuple(scales)
    return (side,) if views == "native" else tuple(s for s in scales if s <= side)


def sweep_sizes(smallest: int, largest: int, steps: int = SWEEP_STEPS) -> tuple[int, ...]:
    """Input sizes from `smallest` to `largest` in `steps` equal steps (Section VI-B).

    >>> sweep_sizes(32, 224)[:3]
    (32, 48, 64)
    """
    span = largest - smallest
    return tuple(sorted({smallest + round(span * i / steps) for i in range(steps + 1)}))


def check_choice(key: str, value: str, known) -> str:
    """`value` if it is one of `known`, else a `UserError` that names `key` and what is near."""
    if value not in known:
        raise UserError(f"{key}: unknown value {value!r}; {did_you_mean(str(value), known)}")
    return value
