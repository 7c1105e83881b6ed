"""Linear CKA: how alike two sets of features of the same images are (Section III-B)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLUMNS = 1 << 16  # features at a time in float64
LEAST = 4  # images that the unbiased estimator needs


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """CKA(X, Y) = <K_X, K_Y>_F / (|K_X|_F |K_Y|_F) of features x (n, ...) and y (n, ...) (Eq. 1).

    Between 0 and 1: 1 for features that are equal up to a rotation, a shift and a factor. None
    where it is not defined, for features that are the same for all images. All sums are of float64.
    """
    _check_rows(x, y)
    k, l = centred_gram(x), centred_gram(y)  # noqa: E741
    return _ratio(*((a * b).sum().item() for a, b in ((k, l), (k, k), (l, l))))


def centred_gram(x: Tensor) -> Tensor:
    """K = X~ X~^T (n, n) of features x (n, ...), X~ those less their mean over the images.

    The paper prints X~ = X - X 1 / n with an n x n matrix of ones on the right, where it does not
    fit; on the left it is this mean, as in its reference (Kornblith et al. 2019).
    """
    rows = x.detach().flatten(1)
    if rows.device.type == "mps":  # it has no float64
        rows = rows.cpu()
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(COLUMNS, 1):
        # the first row goes first, so that features without variance are exactly zero
        part = part.double() - part[:1].double()
        part = part - part.mean(0)
        gram += part @ part.T
    return gram


def hsic1(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC_1, the unbiased estimator of HSIC, from Gram matrices k and l (n, n), n >= 4.

    [tr(K' L') + (1'K'1)(1'L'1) / ((n - 1)(n - 2)) - 2 / (n - 2) 1'K'L'1] / (n (n - 3)), K' and L'
    without their diagonals (Song et al. 2012, Eq. 5; Nguyen, Raghu and Kornblith 2021, Eq. 3).
    """
    n = len(k)
    k, l = (a - torch.diag(a.diagonal()) for a in (k, l))  # noqa: E741
    both, sums = (k * l).sum(), k.sum() * l.sum()
    rows = k.sum(0) @ l.sum(0)
    return ((both + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))).item()


class ExactCKA:
    """Eq. 1 on all images at once; it keeps their features, as float32, until it is asked.

    n: how many images there may be.
    """

    def __init__(self, n: int):
        self.n, self.seen = n, 0
        self.kept: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """The features x (m, ...) and y (m, ...) of the next m images."""
        _check_rows(x, y)
        if not self.kept:
            self.kept = [torch.empty(self.n, f[0].numel()) for f in (x, y)]
        for kept, features in zip(self.kept, (x, y)):
            kept[self.seen : self.seen + len(features)] = features.detach().flatten(1)
        self.seen += len(x)

    def value(self) -> float | None:
        """CKA of what was added; None where it is not defined."""
        return linear_cka(*(kept[: self.seen] for kept in self.kept)) if self.kept else None


class MinibatchCKA:
    """CKA from batches that are forgotten at once, as HSIC_1 allows it.

    `unbiased` is the estimate of Nguyen, Raghu and Kornblith (2021, Eq. 2): the mean over batches
    of HSIC_1(K, L), over the root of the product of those of HSIC_1(K, K) and HSIC_1(L, L). It is
    what CKA tends to with ever more images. Eq. 1 on n images is another number while n is small,
    mostly a larger one; `value` estimates that. In expectation, for independent draws and kernels
    centred on their mean,

        <K~, L~>_F = (n - 1) / n [(n - 1) D + (n^2 - 2 n + 2) C + A B]

    with C = E k(x, x') l(y, y'), which HSIC_1 estimates, D = E k(x, x) l(y, y), A = E k(x, x) and
    B = E l(y, y). A and B are estimated by the traces of the batches, D from the same equation at
    the size of a batch. Of one batch `value` is Eq. 1 itself.

    Batches of other sizes count by their images; one of fewer than 4 is left out. Batches have to
    be random draws: where each holds one class, what tells classes apart is lost.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.inverse = 0.0  # sums over batches of n / (n - 1)
        self.traces = [0.0, 0.0]  # of n A, n B
        self.hsic = [0.0, 0.0, 0.0]  # of n C for the pairs xy, xx, yy
        self.diagonal = [0.0, 0.0, 0.0]  # of n (D + A B / (n - 1))

    def add(self, x: Tensor, y: Tensor) -> None:
        """The features x (m, ...) and y (m, ...) of the next batch."""
        _check_rows(x, y)
        n = len(x)
        if n < LEAST:
            return
        k, l = centred_gram(x), centred_gram(y)  # noqa: E741
        for i, gram in enumerate((k, l)):
            self.traces[i] += n * gram.trace().item() / (n - 1)
        for i, (a, b) in enumerate(((k, l), (k, k), (l, l))):
            hsic, product = hsic1(a, b), (a * b).sum().item()
            self.hsic[i] += n * hsic
            rest = product * n / (n - 1) ** 2 - hsic * (n * n - 2 * n + 2) / (n - 1)
            self.diagonal[i] += n * rest
        self.inverse += n / (n - 1)
        self.seen += n

    def unbiased(self) -> float | None:
        """What CKA tends to with more images; None where it is not defined."""
        return _ratio(*self.hsic)

    def value(self) -> float | None:
        """Eq. 1 of all that was added, up to a factor that cancels; None where not defined."""
        n = self.seen
        if not n:
            return None
        a, b = self.traces
        products = []
        for (one, other), hsic, diagonal in zip(((a, b), (a, a), (b, b)), self.hsic, self.diagonal):
            both = one * other / n**2
            d = diagonal / n - both * self.inverse / n
            products.append((n - 1) * d + (n * n - 2 * n + 2) * hsic / n + both)
        return _ratio(*products)


def _ratio(xy: float, xx: float, yy: float) -> float | None:
    if not (xx > 0 and yy > 0):
        return None
    value = xy / (math.sqrt(xx) * math.sqrt(yy))
    return value if math.isfinite(value) else None


def _check_rows(x: Tensor, y: Tensor) -> None:
    if len(x) != len(y):
        raise ValueError(f"features of {len(x)} and of {len(y)} images; they have to be the same")
