"""The lattice of methods: what is private to a scale, and what a training step looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msun_fastai.errors import UserError
from msun_fastai.scales import check_choice, sides_between

ALIGNMENTS = ("canonical", "native")
CONSISTENCIES = ("si", "sd", "ensemble", "none")


@dataclass(frozen=True)
class Method:
    """One way for a network to deal with scales; every field is a choice of the one body.

    private_shallow: each scale enters through shallow layers of its own, made to fit it.
    private_deep: each scale has deep layers and a head of its own, too. switched: images of every
    scale go through the same layers at their own size, strides kept; what is private is what `norm`
    says. Where it is neither of these, images of every size are brought to the canonical scale.
    generated: every convolution but the first is generated from the scale. random_sizes: each
    training batch is first reduced to a size drawn at random (multi-scale training). alignment: the
    grid on which g runs, and norm, the batch norm in what scales share, unless the user says
    otherwise. consistencies: the terms that it can be trained with, its own first.
    """

    name: str
    private_shallow: bool = False
    private_deep: bool = False
    switched: bool = False
    generated: bool = False
    random_sizes: bool = False
    alignment: str = "canonical"
    norm: str = "shared"
    consistencies: tuple[str, ...] = ("none", "si", "sd")

    def entries(self, scales: Sequence[int]) -> tuple[int, ...]:
        """The scales at which the network takes images, ascending; the last is the canonical."""
        return tuple(scales) if self.private_shallow or self.switched else (scales[-1],)

    @property
    def aligns(self) -> bool:
        """Whether layers that all scales share stand behind shallow ones of each scale's own, which
        can then be trained to give those what the canonical ones give."""
        return self.private_shallow and not self.private_deep

    def check_aligns(self, scales: Sequence[int]) -> None:
        """Raise `UserError` where there is nothing to align: see `aligns`, and one scale alone."""
        if not self.aligns:
            able = " or ".join(name for name, method in METHODS.items() if method.aligns)
            raise UserError(
                f"train.align: {self.name} has no subnets of its own before layers that all scales "
                f"share; it takes {able}"
            )
        if len(scales) == 1:
            raise UserError("train.align: one scale alone has no smaller one to align; leave it 0")

    def own_norm(self, scales: Sequence[int]) -> str:
        """The batch norm in what scales share, unless the user says otherwise."""
        return self.norm if len(self.entries(scales)) > 1 else "shared"

    def consistency(self, kind: str | None, scales: Sequence[int], views: str = "all") -> str:
        """`kind`, or the method's own where it is None, on `scales` and the policy `views`.

        Where a step sees one view of an image nothing can be compared: by default nothing is, and
        a `kind` that compares is refused with a `UserError`.
        """
        several = len(scales) > 1 and (self.random_sizes or views != "native")
        fitting = self.consistencies if several else ("none",)
        if kind is None:
            return fitting[0]
        check_choice("consistency", kind, CONSISTENCIES)
        if kind not in fitting:
            why = "draws the sizes of every batch: no scale has a share in an ensemble"
            if fitting == ("none",):
                why = "has no two views of an image to compare here"
            raise UserError(
                f"consistency: {self.name} {why}; it takes {' or '.join(sorted(fitting))}"
            )
        return kind

    def reductions(self, scales: Sequence[int], routing: str) -> tuple[range, ...]:
        """The sides to which a training view may be reduced first, for each of `entries`: those
        between the scales that `routing` sends there. Raises `UserError` where there are none."""
        if self.random_sizes:
            raise UserError(
                f"reduced: {self.name} draws a size for every batch already; leave it out"
            )
        entries = self.entries(scales)
        if len(entries) == 1:
            raise UserError(
                f"reduced: {self.name} has one scale here, {entries[0]}, and no sizes between "
                "scales; leave it out, or take mst"
            )
        sides = sides_between(entries, routing)
        if all(tuple(of) == (scale,) for of, scale in zip(sides, entries)):
            raise UserError(
                f"reduced: routing {routing} sends no size between the scales "
                f"{','.join(map(str, entries))} to the larger one; leave it out"
            )
        return sides


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("vanilla", consistencies=("none",)),
        Method("mst", random_sizes=True),  # Section VI-C
        Method(  # Table VI: subnets without a unified network
            "snet",
            private_shallow=True,
            private_deep=True,
            alignment="native",
            consistencies=("none", "si", "sd", "ensemble"),
        ),
        Method(  # Section V
            "msun", private_shallow=True, consistencies=("si", "sd", "ensemble", "none")
        ),
        Method(  # Wang, Sun, Li, Yao: Resolution Switchable Networks, ECCV 2020
            "rsnet",
            switched=True,
            alignment="native",
            norm="per_scale",
            consistencies=("ensemble", "sd", "si", "none"),
        ),
        Method(  # Li, Yao, Chen: Scale Adaptive Network, ECCV 2020
            "san",
            switched=True,
            generated=True,
            alignment="native",
            norm="per_scale",
            consistencies=("sd", "ensemble", "si", "none"),
        ),
    )
}


def find_method(name: str) -> Method:
    """The row of method `name`, or a `UserError` that names what is near."""
    return METHODS[check_choice("method", name, METHODS)]
