"""Normalisations: RMS over the width, L2 over a head."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor

UNIT_EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their norm."""


class _RMS(torch.autograd.Function):
    """``y = x r w`` with ``r = 1 / rms(x)``, in half the memory traffic of the composite.

    With ``P = dy x r``: ``dw = sum P`` and ``dx = r (dy w - x r mean(P w))``.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, weight, r = ctx.saved_tensors
        scaled = x * r
        P = dy * scaled
        mean = (P @ weight.to(P.dtype))[..., None] / x.shape[-1]
        dx = (dy * weight.to(dy.dtype)).addcmul_(scaled, mean, value=-1).mul_(r)
        return dx, P.reshape(-1, x.shape[-1]).sum(0).to(weight.dtype), None


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` (Zhang and Sennrich 2019), the mean square in float32 at least.

    >>> RMSNorm(2)(torch.tensor([3.0, 3.0])).round(decimals=3).tolist()
    [1.0, 1.0]
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last axis."""
        return _RMS.apply(x, self.weight, self.eps)


class _Unit(torch.autograd.Function):
    """``y = x / max(|x|, eps)`` and ``dx = (dy - y (y . dy)) / |x|``."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=UNIT_EPS)
        y = x / norm
        ctx.save_for_backward(y, norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> Tensor:
        y, norm = ctx.saved_tensors
        return unit_backward(y, norm, dy)


def unit_backward(y: Tensor, norm: Tensor, dy: Tensor) -> Tensor:
    """Derivative of :func:`unit` from its result and the norm that was divided by."""
    along = (y * dy).sum(-1, keepdim=True).masked_fill_(norm <= UNIT_EPS, 0.0)
    return torch.addcmul(dy, y, along, value=-1).div_(norm)


def unit(x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
    """``x / |x|`` on the last axis; the zero vector stays zero (readings R3, R5).

    >>> unit(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return _Unit.apply(x)
