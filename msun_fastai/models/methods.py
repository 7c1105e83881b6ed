"""The lattice of methods: what is private to a scale, and what a training step looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msun_fastai.scales import check_choice

ALIGNMENTS = ("canonical", "native")


@dataclass(frozen=True)
class Method:
    """One way for a network to deal with scales; every field is a choice of the one body.

    subnets: each scale enters through shallow layers of its own; otherwise images of every size
    are brought to the canonical scale. random_sizes: each training batch is first reduced to a
    size drawn at random (multi-scale training).
    """

    name: str
    subnets: bool
    random_sizes: bool

    def entries(self, scales: Sequence[int]) -> tuple[int, ...]:
        """The scales at which the network takes images, ascending; the last is the canonical."""
        return tuple(scales) if self.subnets else (scales[-1],)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("vanilla", subnets=False, random_sizes=False),
        Method("mst", subnets=False, random_sizes=True),  # Section VI-C
        Method("msun", subnets=True, random_sizes=False),  # Section V
    )
}


def find_method(name: str) -> Method:
    """The row of method `name`, or a `UserError` that names what is near."""
    return METHODS[check_choice("method", name, METHODS)]
