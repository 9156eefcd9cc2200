"""The hidden vectors of a deep memory, ``h = normalise(gelu(z))``, with derivatives by hand.

The inner gradient needs the map's transpose, the outer gradient both maps' derivatives. Written
out they take five to eight passes over memory where a tape of elementary operations takes twenty.
Plain functions on tensors for steps that are differentiated by hand as a whole, and the same as
autograd functions.

    g = gelu(z),  n = max(|g|, EPS),  h = g / n
    transpose:  y = gelu'(z) t,  t = (e - h (h . e)) / n
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor

EPS = 1e-12
"""Below every norm that occurs: ``h = g / max(|g|, EPS)``."""

INVERSE_SQRT_2_PI = 0.3989422804014327


class Hidden(NamedTuple):
    """A hidden vector and what its derivatives need.

    Attributes:
        z: before the map, ``(..., M)``.
        h: after it, ``(..., M)``.
        n: the norm that was divided by, ``(..., 1)``.
    """

    z: Tensor
    h: Tensor
    n: Tensor


def dot(x: Tensor, y: Tensor) -> Tensor:
    """``x . y`` on the last axis, which is kept."""
    return (x * y).sum(-1, keepdim=True)


def forward(z: Float[Tensor, "... M"]) -> Hidden:
    """``h = gelu(z) / n``."""
    g = F.gelu(z)
    n = torch.linalg.vector_norm(g, dim=-1, keepdim=True).clamp_(min=EPS)
    return Hidden(z, g.div_(n), n)


def slope(z: Tensor) -> Tensor:
    """``gelu'(z)``."""
    return torch.ops.aten.gelu_backward(z.new_ones(()).expand_as(z), z)


def backward(hidden: Hidden, dh: Tensor, dn: Tensor | None, slope: Tensor | None = None) -> Tensor:
    """``dz`` from ``dg = dh / n + h (dn - h . dh / n)``.

    ``slope`` is ``gelu'(z)`` where it is at hand. ``dn`` may hold the first rows only; the norms
    of the others had no other use.
    """
    z, h, n = hidden
    along = dot(h, dh).div_(n).neg_()
    if dn is not None:
        along.narrow(-2, 0, dn.shape[-2]).add_(dn)
    along.masked_fill_(n <= EPS, 0.0)
    dg = (dh / n).addcmul_(h, along)
    return torch.ops.aten.gelu_backward(dg, z) if slope is None else dg.mul_(slope)


def transposed(hidden: Hidden, e: Tensor, s: Tensor) -> Tensor:
    """``t = (e - h s) / n`` with ``s = h . e``; times ``gelu'(z)`` it is the error before."""
    return torch.addcmul(e, hidden.h, s, value=-1).div_(hidden.n)


def transposed_backward(hidden: Hidden, e: Tensor, s: Tensor, dy: Tensor, slope: Tensor):
    """Derivatives of the transpose with respect to ``e``, ``z``, ``h`` and ``n``.

    With ``dt = gelu'(z) dy`` and ``r = h . dt``:  ``de = (dt - h r) / n``,
    ``dh = -(dt s + e r) / n``,  ``dn = -t . dt / n``,  ``dz = dy t gelu''(z)``.
    """
    z, h, n = hidden
    t = transposed(hidden, e, s)
    scaled = (slope * dy).div_(n)
    dn = dot(t, scaled).neg_()
    r = dot(h, scaled)
    dh = (scaled * s).addcmul_(e, r).neg_()
    de = scaled.addcmul_(h, r, value=-1)
    square = z * z
    dz = torch.exp(square * -0.5)  # the normal density but for its factor, then gelu''
    dz.mul_(square.sub_(2.0)).mul_(t.mul_(-INVERSE_SQRT_2_PI)).mul_(dy)
    return de, dz, dh, dn


class _HiddenMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z: Tensor) -> tuple[Tensor, Tensor]:
        hidden = forward(z)
        ctx.save_for_backward(*hidden)
        return hidden.h, hidden.n

    @staticmethod
    @once_differentiable
    def backward(ctx, dh: Tensor, dn: Tensor) -> Tensor:
        return backward(Hidden(*ctx.saved_tensors), dh, dn)


class _HiddenMapTransposed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, e: Tensor, z: Tensor, h: Tensor, n: Tensor) -> Tensor:
        s = dot(h, e)
        ctx.save_for_backward(e, z, h, n, s)
        return torch.ops.aten.gelu_backward(transposed(Hidden(z, h, n), e, s), z)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        e, z, h, n, s = ctx.saved_tensors
        return transposed_backward(Hidden(z, h, n), e, s, dy, slope(z))


def hidden_map(z: Float[Tensor, "... M"]) -> tuple[Tensor, Tensor]:
    """``normalise(gelu(z))`` and the norm that was divided by."""
    return _HiddenMap.apply(z)


def hidden_map_transposed(
    error: Float[Tensor, "... M"], z: Tensor, h: Tensor, norm: Tensor
) -> Float[Tensor, "... M"]:
    """The error before :func:`hidden_map`, ``gelu'(z) * (I - h h^T) error / norm``."""
    return _HiddenMapTransposed.apply(error, z, h, norm)
