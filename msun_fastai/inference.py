"""What a saved network answers for batches of one scale, in as much memory as there is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from msun_fastai.devices import DTYPES, check_precision, out_of_memory
from msun_fastai.errors import UserError
from msun_fastai.models.heads import classifier_inputs, classifiers
from msun_fastai.models.saving import Preprocessing, SavedModel
from msun_fastai.scales import check_choice

PRECISIONS = ("full", "bf16")  # half precision has no room for what untamed networks add up
AUTO = "auto"
# images at a time unless said otherwise; a CPU has all its cores at work with a few, and what they
# take fits its caches
USUAL, USUAL_ELSEWHERE = {"cpu": 16}, 64
# images in the batches that are tried, from and to
FIRST, MOST = {"cpu": 4}, {"cpu": 64}
FIRST_ELSEWHERE, MOST_ELSEWHERE = 64, 1024
WORTH = 1.05  # times as many images a second, for a batch of twice the size to be worth its memory
TRIALS = 2  # timed, after one that is not


@dataclass
class Options:
    """How the network is run.

    tta: the mean of the probabilities of the image and of its mirror image, each through the subnet
    of the image's own scale. precision: `full`, or `bf16` for the layers that take it. compiled:
    through `torch.compile`, a network a scale. embeddings: what the classifier sees of each image
    (not of its mirror image), too.
    """

    tta: bool = False
    precision: str = "full"
    compiled: bool = False
    embeddings: bool = False


def normalize(batch: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 images (n, 3, h, w) as the network takes them: (x / 255 - mean) / std."""
    mean, std = (
        torch.tensor(v, device=batch.device)[:, None, None]
        for v in (preprocessing.mean, preprocessing.std)
    )
    return (batch.float() / 255 - mean) / std


class Inference:
    """A network that answers for batches of one scale, see `Options`.

    bs: images at a time, 16 on a CPU and 64 elsewhere by default, or `auto`: by a short trial on
    what the device is, for each scale, when it is first asked for. Where memory runs out it is
    halved from there on, and `tell` is called with what happened. Raises `UserError` for what the
    network or its device does not have.
    """

    def __init__(
        self,
        saved: SavedModel,
        bs: int | str | None = None,
        options: Options | None = None,
        tell: Callable[[str], object] = bool,
    ):
        self.saved, self.tell = saved, tell
        self.options = options or Options()
        if isinstance(bs, str) and bs != AUTO:
            raise UserError(f"bs {bs!r}: a whole number from 1, or {AUTO}")
        self.bs = USUAL.get(self.device.type, USUAL_ELSEWHERE) if bs is None else bs
        check_choice("precision", self.options.precision, PRECISIONS)
        check_precision(self.options.precision, self.device)
        if self.options.embeddings and self.options.compiled:
            raise UserError("compile: not with embeddings, which are taken inside the network")
        if self.options.embeddings:
            classifiers(saved.model)  # or an error that names what has none
        self.sizes: dict[int, int] = {}  # images at a time, by scale
        self._compiled: dict[int, nn.Module] = {}

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.saved.model.parameters()).device

    @property
    def width(self) -> int:
        """How many numbers an embedding has."""
        return classifiers(self.saved.model)[0].in_features

    def size(self, scale: int) -> int:
        """How many images of `scale` go through the network at a time."""
        if scale not in self.sizes:
            self.sizes[scale] = self.bs if isinstance(self.bs, int) else self._tried(scale)
        return self.sizes[scale]

    def state_dict(self) -> dict[str, Any]:
        """What another process has to know to cut the same batches."""
        return {"sizes": {str(scale): size for scale, size in self.sizes.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.sizes = {int(scale): int(size) for scale, size in state["sizes"].items()}

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 images (n, 3, scale, scale) to probabilities (n, classes), and embeddings (n, d) if
        they are wanted, float32 on the CPU."""
        scale, done = pixels.shape[-1], 0
        parts: list[tuple[Tensor, Tensor | None]] = []
        while done < len(pixels):
            n = self._next(len(pixels) - done, self.size(scale))
            try:
                parts.append(self._answer(pixels[done : done + n], scale))
                done += n
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            else:
                continue
            self._shrink(scale, n, reason)  # after the error, which holds the pass's tensors
        probabilities, embeddings = zip(*parts)
        wanted = self.options.embeddings
        return torch.cat(probabilities), torch.cat(embeddings) if wanted else None

    def _next(self, left: int, size: int) -> int:
        """How many images go through the network next, of `left`, with `size` at a time at most."""
        if self.device.type != "cpu":
            return -(-left // -(-left // size))  # as few batches as can be, none much smaller
        # a CPU is as fast with a few images, and oneDNN keeps each convolution prepared for each
        # size of batch that it has met: full ones and powers of two only, or memory grows
        return size if left >= size else 1 << (left.bit_length() - 1)

    @torch.no_grad()
    def _answer(self, pixels: Tensor, scale: int) -> tuple[Tensor, Tensor | None]:
        model, options = self.saved.model, self.options
        i = model.entry_scales.index(scale)
        network = self._network(i)
        batch = normalize(pixels.to(self.device), self.saved.preprocessing)
        mixed = options.precision != "full"
        casting: Any = (
            torch.autocast(self.device.type, DTYPES[options.precision]) if mixed else nullcontext()
        )
        with casting:
            if options.embeddings:
                with classifier_inputs(model, i) as seen:
                    logits = network(batch)
                embeddings = seen[0].float().cpu()
            else:
                logits, embeddings = network(batch), None
            probabilities = logits.float().softmax(1)
            if options.tta:
                mirrored = network(batch.flip(-1)).float().softmax(1)
                probabilities = (probabilities + mirrored) / 2
        return probabilities.cpu(), embeddings

    def _network(self, i: int) -> nn.Module:
        """The plain network of the scale with index `i`."""
        network = self.saved.model.at_scale(i)
        if not self.options.compiled:
            return network
        if i not in self._compiled:
            network.compile()
            self._compiled[i] = network
        return self._compiled[i]

    def _shrink(self, scale: int, n: int, reason: str) -> None:
        if n < 2:
            raise UserError(
                f"out of memory with one image of {scale} pixels ({reason}); free some, or give "
                "--device cpu"
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.sizes[scale] = (n + 1) // 2
        self.tell(
            f"out of memory with {n} images of {scale} pixels: from here on {self.sizes[scale]} at "
            "a time"
        )

    def _tried(self, scale: int) -> int:
        """How many images of `scale` at a time give the most of them a second, by trial: doubled as
        long as that is worth it."""
        kind = self.device.type
        size, most = FIRST.get(kind, FIRST_ELSEWHERE), MOST.get(kind, MOST_ELSEWHERE)
        best = 0.0
        while True:
            try:
                rate = self._rate(scale, size)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                return max(1, size // 2)
            if rate < WORTH * best:
                return size // 2
            if 2 * size > most:
                return size
            best, size = rate, 2 * size

    def _rate(self, scale: int, n: int) -> float:
        """Images a second in batches of `n`."""
        # of noise: on a CPU, zeros and what they lead to may be faster or slower than pixels
        noise = torch.Generator().manual_seed(0)
        pixels = torch.randint(256, (n, 3, scale, scale), dtype=torch.uint8, generator=noise)
        seconds = []
        for _ in range(1 + TRIALS):
            started = time.perf_counter()
            self._answer(pixels, scale)  # ends when its answer is on the CPU
            seconds.append(time.perf_counter() - started)
        return n / min(seconds[1:])
