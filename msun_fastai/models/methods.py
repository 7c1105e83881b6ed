"""The lattice of methods: what is private to a scale, and what a training step looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msun_fastai.errors import UserError
from msun_fastai.scales import check_choice

ALIGNMENTS = ("canonical", "native")
CONSISTENCIES = ("si", "none")


@dataclass(frozen=True)
class Method:
    """One way for a network to deal with scales; every field is a choice of the one body.

    private_shallow: each scale enters through shallow layers of its own; otherwise images of every
    size are brought to the canonical scale. private_deep: each scale has deep layers and a head of
    its own, too. random_sizes: each training batch is first reduced to a size drawn at random
    (multi-scale training). alignment: the grid on which g runs, unless the user says otherwise.
    consistencies: the terms that it can be trained with, its own first.
    """

    name: str
    private_shallow: bool = False
    private_deep: bool = False
    random_sizes: bool = False
    alignment: str = "canonical"
    consistencies: tuple[str, ...] = ("none", "si")

    def entries(self, scales: Sequence[int]) -> tuple[int, ...]:
        """The scales at which the network takes images, ascending; the last is the canonical."""
        return tuple(scales) if self.private_shallow else (scales[-1],)

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
            raise UserError(
                f"consistency: {self.name} has no two views of an image to compare here; "
                f"it takes {' or '.join(fitting)}"
            )
        return kind


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("vanilla", consistencies=("none",)),
        Method("mst", random_sizes=True),  # Section VI-C
        # Table VI: subnets without a unified network
        Method("snet", private_shallow=True, private_deep=True, alignment="native"),
        Method("msun", private_shallow=True, consistencies=("si", "none")),  # Section V
    )
}


def find_method(name: str) -> Method:
    """The row of method `name`, or a `UserError` that names what is near."""
    return METHODS[check_choice("method", name, METHODS)]
