"""Images at sizes: which plain network of a model takes them, and how they get there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.ideal import ideal_network, nearest_scale, proxy_network
from msun_fastai.models.meta import runs_at, smallest_side
from msun_fastai.models.methods import find_method
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import Preprocessing
from msun_fastai.predict import normalize
from msun_fastai.scales import check_choice, check_scales
from msun_fastai.views import resize_batch

# canonical: images of a size go to the scale that the routing gives them, as in Table II. native:
# as they are, to a network of one scale, as in Table I, or to the nearest scale's of rsnet and san
# (SAN's proxy inference). ideal: as they are, to a network of their own size (SAN's ideal one)
RESIZES = ("canonical", "native", "ideal")


@dataclass(frozen=True)
class Sized:
    """The plain network that takes images of `size`.

    side: the side at which it sees them. index: which of the model's scales it is. network: its
    parts, of which `head` is the last; it gives logits (n, classes).
    """

    size: int
    side: int
    index: int
    network: nn.Sequential

    def take(self, views: Tensor, preprocessing: Preprocessing) -> Tensor:
        """uint8 views (n, 3, size, size) as the network takes them, on its device."""
        device = next(self.network.parameters()).device
        return resize_batch(normalize(views.to(device), preprocessing), self.side)

    @property
    def body(self) -> nn.Sequential:
        """From the image to the last feature map."""
        return self.network[:-1]

    @property
    def head(self) -> nn.Module:
        """From the last feature map to logits."""
        return self.network[-1]


def subnet_for(net: MultiScaleNet, size: int, scale: int) -> Sized:
    """The network of `scale` for images of `size`, which it brings to its scale."""
    i = net.entry_scales.index(scale)
    return Sized(size, scale, i, net.at_scale(i))


def sized_networks(
    net: MultiScaleNet, sizes: Sequence[int], resize: str = "canonical"
) -> list[Sized]:
    """The network for each of `sizes`, in their order.

    `canonical`: an image of a size is routed and resized to its scale. `native` and `ideal`: a
    network of one scale (vanilla, mst), or of scales that differ in no layer's shape (rsnet, san),
    runs at the size itself, on the grids that come of it: see `models.ideal`. Raises `UserError`
    for subnets of their own, or a size that is too small.
    """
    check_choice("resize", resize, RESIZES)
    sizes = check_scales(sizes, "sizes")
    if resize == "canonical":
        return [subnet_for(net, size, net.route(size)) for size in sizes]
    if net.config.test_sizes is not None:
        raise UserError(f"resize: {resize}: the network is calibrated for input sizes; canonical")
    if len(net.entry_scales) > 1 and not find_method(net.config.method).switched:
        raise UserError(
            f"resize: {resize} is for networks of one scale, and for rsnet and san; "
            f"{net.config.method} has {len(net.entry_scales)} to resize to"
        )
    found = []
    for size in sizes:
        network = (proxy_network if resize == "native" else ideal_network)(net, size)
        if not runs_at(network, size):
            least = smallest_side(network, net.entry_scales[-1])
            raise UserError(f"sizes: {size}: {net.config.arch} takes {least} pixels or more")
        found.append(Sized(size, size, nearest_scale(net, size), network))
    return found
