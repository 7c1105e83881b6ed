"""`NetConfig`: all that is needed to build a network again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from msun_fastai.errors import UserError
from msun_fastai.models.families import find_family
from msun_fastai.models.methods import ALIGNMENTS, Method, find_method
from msun_fastai.models.sharing import NORMS
from msun_fastai.scales import (
    DEFAULT_SCALES,
    LARGEST_SCALE,
    check_choice,
    check_routing,
    check_scales,
    thresholds,
)

MOST_SCALES = 64  # each may have a network of its own
FITTED_TO = ("test_size", "test_sizes", "test_scales")  # what a calibration adds to a network


@dataclass(frozen=True)
class NetConfig:
    """All that is needed to build the network again: what a saved model's JSON holds.

    scales: sides in pixels, ascending, the last canonical. blocks: k of Bk, how many blocks each
    subnet has after its stem. alignment: the grid on which g runs, `canonical` (the paper, and
    msun's default) or `native` (each subnet's own, and snet's default). grids: sides of the
    subnets' grids, one per scale; by default as large as they get without exceeding the canonical
    one. norm: the batch norm in what scales share, `shared` (msun's default) or `per_scale` (that
    of rsnet and san). routing: which scale an image of another size goes to, see
    `scales.thresholds`. meta_hidden: hidden units in each of san's meta learners; 0 is linear, the
    paper's Table 5 has 8 and 16. ensemble: it has a learnt mean of all scales' logits, for the
    consistency of that name. test_size: the side that a trained network was fitted to afterwards;
    it takes images at that side alone, see `MultiScaleNet.keep_for`. test_sizes: the input sizes,
    ascending, for each of which a trained network was given batch norms of its own afterwards, and
    test_scales the scale that takes each; routing says which size an image goes to, see
    `MultiScaleNet.split_by_size`.
    Raises `UserError` for choices that do not go together.
    """

    arch: str
    n_classes: int
    scales: tuple[int, ...] = DEFAULT_SCALES
    method: str = "msun"
    blocks: int = 1
    alignment: str | None = None
    grids: tuple[int, ...] | None = None
    norm: str | None = None
    routing: str = "nearest"
    meta_hidden: int = 0
    ensemble: bool = False
    test_size: int | None = None
    test_sizes: tuple[int, ...] | None = None
    test_scales: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        if len(self.scales) > MOST_SCALES:
            raise UserError(f"scales: {len(self.scales)}; {MOST_SCALES} at most")
        method, family = find_method(self.method), find_family(self.arch)
        if self.alignment is None:
            object.__setattr__(self, "alignment", method.alignment)
        if self.norm is None:
            object.__setattr__(self, "norm", method.own_norm(self.scales))
        check_choice("alignment", str(self.alignment), ALIGNMENTS)
        self._check_test_size()
        self._check_test_sizes(method)
        self._check_routing(self.entries)
        for key in ("n_classes", "blocks", "meta_hidden"):
            if not isinstance(getattr(self, key), int):
                raise UserError(f"{key}: {getattr(self, key)!r} is not a whole number")
        if method.private_shallow and not family.subnets:
            raise UserError(
                f"arch: {self.arch} bears no subnets for smaller scales; "
                "it takes the methods vanilla, mst, rsnet and san"
            )
        if not method.private_shallow and self.alignment != method.alignment:
            raise UserError(f"alignment: {self.method} has no subnets whose grids could differ")
        self._check_shared(method)
        if self.grids is not None:
            self._check_grids(method.private_shallow)

    @property
    def entries(self) -> tuple[int, ...]:
        """The sides at which the network takes images, ascending."""
        if self.test_size is not None:
            return (self.test_size,)
        if self.test_sizes is not None:
            return self.test_sizes
        return find_method(self.method).entries(self.scales)

    def _check_test_size(self) -> None:
        size = self.test_size
        if size is not None and not (type(size) is int and 1 <= size <= LARGEST_SCALE):
            raise UserError(
                f"test_size: {size!r}: a side is a whole number of pixels from 1 to {LARGEST_SCALE}"
            )

    def _check_test_sizes(self, method: Method) -> None:
        if self.test_sizes is None and self.test_scales is None:
            return
        if self.test_size is not None:
            raise UserError("test_sizes: it is fitted to one size, test_size, already")
        sizes = check_scales(self.test_sizes or (), "test_sizes")
        if len(sizes) > MOST_SCALES:
            raise UserError(f"test_sizes: {len(sizes)}; {MOST_SCALES} at most")
        scales, known = tuple(self.test_scales or ()), method.entries(self.scales)
        whole = all(type(scale) is int for scale in scales)
        if len(scales) != len(sizes) or not whole or not set(scales) <= set(known):
            raise UserError(f"test_scales: {list(scales)}: one of {list(known)} for each size")
        object.__setattr__(self, "test_sizes", sizes)
        object.__setattr__(self, "test_scales", scales)

    def _check_routing(self, entries: Sequence[int]) -> None:
        if check_routing(self.routing).startswith("calibrated") and len(entries) == 1:
            raise UserError(f"routing: {self.method} has one scale; there is nothing to route")
        thresholds(tuple(entries), self.routing)  # as many as there have to be

    def _check_shared(self, method: Method) -> None:
        """What scales share: their batch norm, their meta learners, their ensemble."""
        several = len(method.entries(self.scales)) > 1
        check_choice("norm", str(self.norm), NORMS)
        if self.norm == "per_scale" and (method.private_deep or not several):
            raise UserError(
                f"norm: {self.method} shares no batch norm between scales here; leave it shared"
            )
        if self.meta_hidden < 0 or (self.meta_hidden and not method.generated):
            raise UserError(
                f"meta_hidden: {self.meta_hidden}: {self.method} has no such meta learners; "
                "san takes 0 (linear) or more"
            )
        if self.ensemble and len(self.entries) == 1:
            raise UserError(f"ensemble: {self.method} has one scale here; there is no mean of it")
        if self.ensemble and self.test_sizes is not None:
            raise UserError("ensemble: a network that is calibrated for input sizes has none")

    def _check_grids(self, has_subnets: bool) -> None:
        if not has_subnets:
            raise UserError(
                f"grids: {self.method} has no subnets for smaller scales; leave them out"
            )
        grids = tuple(self.grids or ())
        if not all(type(grid) is int and grid > 0 for grid in grids):
            raise UserError(f"grids: {list(grids)}: a grid is a whole number of positions")
        if len(grids) != len(self.scales):
            raise UserError(f"grids: {len(grids)} given for {len(self.scales)} scales")
        object.__setattr__(self, "grids", grids)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
