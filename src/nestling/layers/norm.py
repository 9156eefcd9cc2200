"""Normalisation of the residual stream: RMS over the width."""

from __future__ import annotations

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor


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


def rms_composite(x: Float[Tensor, "... D"], weight: Tensor, eps: float) -> Float[Tensor, "... D"]:
    """The same from torch's own operations, which can be differentiated more than once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    r = (x.to(wide).square().mean(-1, keepdim=True) + eps).rsqrt().to(x.dtype)
    return x * r * weight.to(x.dtype)


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` (Zhang and Sennrich 2019), the mean square in float32 at least.

    Where ``composite`` is set its derivative can itself be differentiated, at twice the traffic.

    >>> RMSNorm(2)(torch.tensor([3.0, 3.0])).round(decimals=3).tolist()
    [1.0, 1.0]
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps, self.composite = eps, False
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Normalise the last axis."""
        if self.composite:
            return rms_composite(x, self.weight, self.eps)
        return _RMS.apply(x, self.weight, self.eps)
