"""The learnt mean of all scales' logits (RS-Nets, Section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msun_fastai.losses import ensemble_logits


class Ensemble(nn.Module):
    """z_m = sum over scales of alpha_s z_s, alpha the softmax of one learnt number a scale.

    All equal at first. Where a batch lacks a scale the others share its part.
    """

    def __init__(self, scales: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(scales))

    def forward(self, logits: Sequence[Tensor], entries: Sequence[int]) -> Tensor:
        """(n, classes) from the logits (n, classes) of the scales with the indices `entries`."""
        return ensemble_logits(logits, torch.stack([self.weight[i] for i in entries]))
