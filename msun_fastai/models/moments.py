"""Exact statistics of batch norms: mean and variance over all images, not a moving average."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai.errors import UserError
from msun_fastai.models.meta import evaluating


class Moments:
    """Mean and summed squared deviation, by channel, of all that was added; float64."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros((), dtype=torch.float64)

    def add(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Add x (n, c, ...); its own mean and biased variance, (c,) each.

        The way to put parts together is Chan, Golub and LeVeque's (1983).
        """
        dims = [0, *range(2, x.dim())]
        variance, mean = torch.var_mean(x.float(), dims, correction=0)
        n, total = x.numel() // x.shape[1], self.count + x.numel() // x.shape[1]
        away = mean.cpu().double() - self.mean
        self.mean = self.mean + away * (n / total)
        self.squares = (
            self.squares + variance.cpu().double() * n + away**2 * (self.count * n / total)
        )
        self.count = total
        return mean, variance

    def write(self, norm: _BatchNorm) -> None:
        """Make them the statistics of `norm`."""
        if self.count:  # else it had no part in it
            write_statistics(norm, self.mean, self.squares / self.count)


def write_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Set running mean and variance, (c,) each."""
    for kept, value in ((norm.running_mean, mean), (norm.running_var, variance)):
        assert kept is not None
        kept.copy_(value)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor], passes: int = 1) -> int:
    """Set the statistics of every batch norm in `network` to the exact mean and variance, over all
    positions of all images, of what it is given; returns the number of images.

    batches: normalised images (n, 3, h, w), of the training part at the size that is wanted; with
    several `passes` they are gone through as often. In the first pass each layer normalises by the
    batch, as in training. A further one goes by the statistics found so far, and gives one more
    layer, in their order, exactly those of what it is given in evaluation, whatever the batches;
    as many as there are layers give them to all. With a single batch the first pass does so.
    Variances are biased, those by which training normalises; torch keeps unbiased ones, which with
    n values differ by 1 / n. Where it fails the statistics stay as they were. Raises `UserError`.
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        raise UserError("calibrate: this network has no batch norm with statistics")
    device = next(network.parameters()).device
    with evaluating(network), _kept_on_error(norms):
        for number in range(passes):
            images = 0
            with _taking(norms, by_batch=number == 0):
                for batch in batches:
                    network(batch.to(device))
                    images += len(batch)
                if not images:
                    raise UserError("calibrate: there are no images to take statistics of")
    return images


@contextmanager
def _taking(norms: Iterable[_BatchNorm], by_batch: bool) -> Iterator[None]:
    """Take the moments of what each of `norms` is given, and write them in the end.

    by_batch: until then each normalises by its batch, whose statistics are written for it.
    """
    found = {norm: Moments() for norm in norms}

    def take(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        own = found[norm].add(given[0])
        if by_batch:
            write_statistics(norm, *own)

    with ExitStack() as hooks:
        for norm in found:
            hooks.callback(norm.register_forward_pre_hook(take).remove)
        yield
    for norm, moments in found.items():
        moments.write(norm)


@contextmanager
def _kept_on_error(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Put the statistics back where the block ends in an error."""
    before = [(kept, kept.clone()) for norm in norms for kept in norm.buffers()]
    try:
        yield
    except BaseException:
        for kept, value in before:
            kept.copy_(value)
        raise
