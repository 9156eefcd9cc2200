"""Short causal depthwise convolution: every channel sees its own last few tokens.

    y_t = silu(sum_i w_i x_{t-i}),   i = 0 .. size-1

It gives keys, values and queries access to the tokens just before them, which associative
memories need in order to store "what came next".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor


class _Convolve(torch.autograd.Function):
    """``y_t = sum_i w_i x_{t+i}`` per channel, accumulated in place: one pass for every tap."""

    @staticmethod
    def forward(ctx, padded: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(padded, weight)
        T = padded.shape[1] - weight.shape[0] + 1
        y = padded[:, :T] * weight[0]
        for tap in range(1, weight.shape[0]):
            y.addcmul_(padded[:, tap : tap + T], weight[tap])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        padded, weight = ctx.saved_tensors
        T = dy.shape[1]
        dx, dw = torch.zeros_like(padded), torch.empty_like(weight)
        for tap in range(weight.shape[0]):
            dx[:, tap : tap + T].addcmul_(dy, weight[tap])
            dw[tap] = (padded[:, tap : tap + T] * dy).sum((0, 1))
        return dx, dw


class ShortConvolution(nn.Module):
    """Causal depthwise convolution of ``size`` taps whose last inputs are an explicit state.

    Args:
        width: channels D.
        size: taps, at least 1.

    Raises:
        ValueError: if ``size`` is below 1.

    >>> conv = ShortConvolution(2, 4)
    >>> y, tail = conv(torch.ones(1, 5, 2), conv.initial_state(1))
    >>> y.shape, tail.shape
    (torch.Size([1, 5, 2]), torch.Size([1, 3, 2]))
    """

    def __init__(self, width: int, size: int = 4):
        super().__init__()
        if size < 1:
            raise ValueError(f"size: expected at least 1 tap, got {size}")
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width))
        nn.init.uniform_(self.weight, -(size**-0.5), size**-0.5)
        with torch.no_grad():
            self.weight[-1] += 1.0  # start near the identity on the current token

    def initial_state(self, batch: int) -> Float[Tensor, "B S D"]:
        """Nothing seen: the last ``size - 1`` inputs are zero."""
        return self.weight.new_zeros(batch, self.size - 1, self.weight.shape[1])

    def forward(
        self, x: Float[Tensor, "B T D"], tail: Float[Tensor, "B S D"], lengths: Tensor | None = None
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B S D"]]:
        """Convolve; rows hold ``lengths`` real tokens, then padding.

        Returns:
            the outputs and the last ``size - 1`` real inputs of each row.
        """
        T, keep = x.shape[1], self.size - 1
        padded = torch.cat([tail.to(x.dtype), x], dim=1)
        y = _Convolve.apply(padded, self.weight.to(x.dtype))
        if lengths is None:
            tail = padded[:, T:]
        else:
            index = lengths.to(x.device)[:, None] + torch.arange(keep, device=x.device)
            tail = padded.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
        return F.silu(y), tail
