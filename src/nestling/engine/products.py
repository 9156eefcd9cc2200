"""Products of a gate over every stretch of a chunk, ``E[t, s] = alpha_{s+1} ... alpha_t``.

Row and column 0 stand for the chunk's start, so that with A and D of ``chunked.py``

    A_t = E[t, 0],   D[t, s] = E[t, s],   A'_t = E[t-1, 0],   D'[t, s] = E[t-1, s].

Products of the gates themselves: a difference of summed logarithms would be cheaper for long
chunks, but it loses digits after every small gate and its gradient fails at a gate of exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor


class _Stretches(torch.autograd.Function):
    """``dalpha_r = sum_{s < r <= t} dE[t, s] E[t, r] E[r-1, s]``, without a division by a gate."""

    @staticmethod
    def forward(ctx, gate: Tensor) -> Tensor:
        C = gate.shape[-1]
        E = gate.new_ones(*gate.shape[:-1], C + 1, C + 1)
        E[..., 1:, :] = gate[..., :, None]
        E = E.tril_(-1).add_(torch.ones(C + 1, C + 1, dtype=E.dtype, device=E.device).triu_())
        E = E.cumprod_(-2).tril_()
        ctx.save_for_backward(E)
        return E

    @staticmethod
    @once_differentiable
    def backward(ctx, dE: Tensor) -> Tensor:
        (E,) = ctx.saved_tensors
        upto = dE @ E.mT  # sum over s of dE[t, s] E[r, s]
        return (E[..., 1:] * upto[..., :-1]).sum(-2)


@dataclass(frozen=True)
class Products:
    """Products of a gate inside a chunk of C tokens, ``stretches`` being E, ``(..., C+1, C+1)``."""

    stretches: Tensor

    @property
    def total(self) -> Tensor:
        """``A_t``, ``(..., C)``."""
        return self.stretches[..., 1:, 0]

    @property
    def between(self) -> Tensor:
        """``D``, ``(..., C, C)``, lower triangular."""
        return self.stretches[..., 1:, 1:]

    @property
    def total_before(self) -> Tensor:
        """``A'``, ``(..., C)``: 1 for the first token."""
        return self.stretches[..., :-1, 0]

    @property
    def between_before(self) -> Tensor:
        """``D'``, ``(..., C, C)``, strictly lower triangular."""
        return self.stretches[..., :-1, 1:]


def products(gate: Float[Tensor, "... C"]) -> Products:
    """Products of ``gate`` over every stretch of tokens.

    >>> products(torch.tensor([0.5, 0.25])).total
    tensor([0.5000, 0.1250])
    """
    return Products(_Stretches.apply(gate))
