"""Normalisations: RMS over the width, L2 over a head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from nestling.shapes import Float, Tensor


class RMSNorm(nn.Module):
    """``x / rms(x) * weight``, computed in float32 under autocast.

    >>> RMSNorm(2)(torch.tensor([3.0, 3.0]))
    tensor([1.0000, 1.0000], grad_fn=<MulBackward0>)
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last axis."""
        return F.rms_norm(x, (x.shape[-1],), eps=self.eps) * self.weight.to(x.dtype)


def unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """``x / |x|`` on the last axis; the zero vector stays zero (readings R3, R5).

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return F.normalize(x, dim=-1, eps=1e-6)
