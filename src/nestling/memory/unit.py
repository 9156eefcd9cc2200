"""Vectors of length one: keys, values and what a memory generates (readings R3, R5)."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor

UNIT_EPS = 1e-6
"""Vectors shorter than this are divided by it instead of by their norm."""


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
