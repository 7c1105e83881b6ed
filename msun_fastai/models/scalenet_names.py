"""ScaleNets by their names (Zhang et al. 2019, Section III-A.4): stages, widths, stem, depth."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from msun_fastai.errors import UserError, did_you_mean

COUPLES = {"d": 4, "s": 2}  # convolutions and deconvolutions of a DoubleCouple, a SingleCouple
MOST_STAGES = 4
MOST_LAYERS = 10_000  # five times the paper's deepest: what is above is a slip of the hand
LAST = 1024  # channels of the last unit behind the stem for 224 pixels
OTHERS = f"imagenet_w64_l{LAST}"  # what blocks that the paper does not have are like
GRAMMAR = "scalenet[DEPTH]_BLOCKS[_OPTIONS], such as scalenet44_d10 or scalenet_d4d5s5_w80_single"
# what an option sets: its words, each with the field of the plan and the value
WORDS: dict[str, tuple[str, object]] = {
    "multi": ("multipath", True),
    "single": ("multipath", False),
    **{word: ("resampling", word) for word in ("ab", "ad", "cd")},
    **{word: ("stem", word) for word in ("cifar", "imagenet")},
    **{word: ("transform", word) for word in ("pooled", "units")},
    **{f"k{kernel}": ("kernel", kernel) for kernel in (3, 4)},
    "ckpt": ("checkpoint", True),
}
# The paper prints no widths. These are those of its authors' code for D7, D10, D20S5, D25, D4D5S6
# and D272D200S50, and elsewhere some that give the printed parameters (docs/method.md).
PAPER = {
    "d7": "cifar_w64x54x44_k4",
    "d10": "cifar_w64_k4",
    "d20s5": "cifar_w27x35x43-54x62_k4",
    "d30": "cifar_w40",
    "d272d200s50": "cifar_w16x18x20-26x28x30-46x50_k4",
    "d25": "imagenet_w64_l1100",
    "d8d8": "imagenet_w80_l512",
    "d3d3s3": "imagenet_w80-160-400_l640",
    "d4d4s4": "imagenet_w80-160-400_l1024",
    "d4d5s5": "imagenet_w80-160-400_l1500",
    "d4d5s6": "imagenet_w80x72x64-200x180x160-440x390_l1500",
}


@dataclass(frozen=True)
class Stage:
    """`count` blocks of one kind, `d` or `s`, with their channels from the largest map to the
    smallest: three of a DoubleCouple, two of a SingleCouple."""

    kind: str
    count: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """All that a ScaleNet is made from.

    multipath: all skips of Figure 2, or only each block's outermost (Table 5). resampling: `ab`,
    `ad`, `cd` of Table 4. stem: for images of 32 pixels (`cifar`) or of 224. transform: what stands
    before a stage of DoubleCouples, see `scalenet_blocks`. kernel: of the deconvolutions. last:
    channels of the unit behind the last stage; 0: there is none. checkpoint: activations are
    computed again in the backward pass.
    """

    stages: tuple[Stage, ...]
    stem: str = "imagenet"
    multipath: bool = True
    resampling: str = "ab"
    transform: str = "pooled"
    kernel: int = 3
    last: int = 0
    checkpoint: bool = False

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Channels of the maps that the stem gives: one on 224 pixels, one a branch on 32."""
        widths = self.stages[0].widths
        return widths if self.stem == "cifar" else widths[:1]

    @property
    def depth(self) -> int:
        """How many convolutions, deconvolutions and linear layers there are, as names count."""
        blocks = sum(COUPLES[stage.kind] * stage.count for stage in self.stages)
        between = sum(self._transform_depth(*pair) for pair in pairwise(self.stages))
        return len(self.stem_widths) + blocks + between + bool(self.last) + 1

    def _transform_depth(self, before: Stage, after: Stage) -> int:
        if takes_units(self.transform, after):
            return 2 * len(after.widths)
        joined = zip(pooled_widths(before.widths), after.widths)
        return 1 + sum(given != wanted for given, wanted in joined)


def takes_units(transform: str, after: Stage) -> bool:
    """Whether the transform before the stage `after` is made of units, two convolutions each."""
    return transform == "units" or after.kind == "s"


def pooled_widths(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Channels after a pooled transform's concatenations, each map with its smaller neighbour."""
    return tuple(a + b for a, b in zip(widths, (*widths[1:], widths[0])))


def unit_widths(before: Stage, after: Stage) -> tuple[int, ...]:
    """Channels of each transform unit: what the map it is concatenated with leaves open."""
    neighbours = (*before.widths[1:], 0)
    return tuple(wanted - beside for wanted, beside in zip(after.widths, neighbours))


def parse_scalenet(arch: str) -> Plan:
    """The plan of a name such as `scalenet44_d10_w64_single`.

    What a name does not say is the paper's configuration of these blocks, and for blocks that it
    does not have 64 channels, doubled from stage to stage, behind the stem for 224 pixels. The
    words come in any order: `w64` (of the first stage or, with `-`, of each; `64x54x44` from a
    block's largest map to its smallest), `l1024` (the last unit), and `WORDS`. Raises `UserError`,
    also where the depth in the name is not that of its blocks.
    """
    found = re.fullmatch(r"scalenet(\d*)_((?:[ds]\d+)+)((?:_[^_]+)*)", arch)
    if found is None:
        raise UserError(f"arch: {arch!r} is no ScaleNet's name; write {GRAMMAR}")
    depth, blocks, options = found.groups()
    counts = [(kind, int(n)) for kind, n in re.findall(r"([ds])(\d+)", blocks)]
    _check_counts(arch, counts)
    own = _read(arch, PAPER.get(blocks, OTHERS).split("_"))
    said = _read(arch, options.split("_")[1:])
    if said.get("stem", own["stem"]) != own["stem"]:  # the last unit belongs to one of the stems
        own |= {"last": LAST if said["stem"] == "imagenet" else 0, "kernel": 3}
    values = {**own, **said}
    widths = str(values.pop("widths", "64"))
    plan = Plan(stages=_stages(arch, counts, widths))
    plan = replace(plan, **values)  # type: ignore[arg-type]
    _check_widths(arch, plan)
    if depth and int(depth) != plan.depth:
        raise UserError(
            f"arch: {arch}: these blocks give {plan.depth} layers, not {depth}; "
            f"write scalenet{plan.depth}_{blocks}{options}"
        )
    return plan


def _read(arch: str, words: list[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for word in words:
        if re.fullmatch(r"w\d+(?:x\d+){0,2}(?:-\d+(?:x\d+){0,2})*", word):
            said: tuple[str, object] = ("widths", word[1:])
        elif re.fullmatch(r"l\d+", word):
            said = ("last", int(word[1:]))
        elif word in WORDS:
            said = WORDS[word]
        else:
            near = did_you_mean(word, [*WORDS, "w64", "l1024"])
            raise UserError(f"arch: {arch}: unknown option {word!r}; {near}")
        field = said[0]
        if field in values:
            raise UserError(f"arch: {arch}: {word!r} is the second word for its {field}")
        values[field] = said[1]
    return values


def _check_counts(arch: str, counts: list[tuple[str, int]]) -> None:
    kinds = [kind for kind, _ in counts]
    if kinds != sorted(kinds):
        raise UserError(
            f"arch: {arch}: stages of DoubleCouples (d) come before those of SingleCouples (s)"
        )
    if len(counts) > MOST_STAGES:
        raise UserError(f"arch: {arch}: {len(counts)} stages; there can be {MOST_STAGES}")
    if not all(n for _, n in counts) or sum(n for _, n in counts) < 2:
        raise UserError(f"arch: {arch}: a stage needs a block, a network two")
    if sum(COUPLES[kind] * n for kind, n in counts) > MOST_LAYERS:
        raise UserError(f"arch: {arch}: more than {MOST_LAYERS} layers")


def _stages(arch: str, counts: list[tuple[str, int]], widths: str) -> tuple[Stage, ...]:
    given = [[int(width) for width in stage.split("x")] for stage in widths.split("-")]
    if len(given) > len(counts):
        raise UserError(f"arch: {arch}: widths of {len(given)} stages for {len(counts)}")
    stages: list[Stage] = []
    for i, (kind, count) in enumerate(counts):
        own = given[i] if i < len(given) else [2 * stages[-1].widths[0]]
        maps = COUPLES[kind] // 2 + 1
        own = own * maps if len(own) == 1 else own
        if len(own) != maps or not all(own):
            text = "x".join(map(str, own))
            raise UserError(f"arch: {arch}: width {text}: a block {kind} has maps of {maps} sizes")
        stages.append(Stage(kind, count, tuple(own)))
    return tuple(stages)


def _check_widths(arch: str, plan: Plan) -> None:
    """Raise `UserError` where a transform unit would have no channels."""
    for i, (before, after) in enumerate(pairwise(plan.stages), 2):
        if takes_units(plan.transform, after) and min(unit_widths(before, after)) < 1:
            least = max(before.widths[1:]) + 1
            raise UserError(f"arch: {arch}: stage {i} needs {least} channels or more")
