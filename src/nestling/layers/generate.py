"""Keys, values and gates made by the generators, read at their chunk's anchor (NL Eq. 86, 90).

    h = normalise(gelu(x W)),   k, v = unit(x + h U),   eta, alpha = sigmoid(r . (x + h U) + b)

where ``x`` is the values' own input for ``v`` and the keys' for all others. One function with its
derivative by hand. The gates are read through the vector ``U r``: their second matrix never meets
a token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.autograd.function import once_differentiable

from nestling.memory import hidden_map
from nestling.memory.hidden_map import Hidden
from nestling.memory.unit import UNIT_EPS, unit_backward
from nestling.shapes import Tensor


class _Generate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, u, W, U, r, b, vectors, valued):
        ctx.vectors, ctx.valued, ctx.stack = vectors, valued, W.shape[1]
        count = vectors + r.shape[0]
        W, U = (M.transpose(0, 1)[:count].contiguous() for M in (W, U))
        x = x.expand(count, *x.shape).clone()
        if valued is not None:
            x[valued] = u
        z, h, n = hidden_map.forward(x @ W)
        made = h[:vectors] @ U[:vectors] + x[:vectors]
        norm = torch.linalg.vector_norm(made, dim=-1, keepdim=True).clamp_(min=UNIT_EPS)
        made.div_(norm)
        r = r[:, None, :, :, None]
        ur = U[vectors:] @ r
        opened = (h[vectors:] @ ur).add_(x[vectors:] @ r).add_(b[:, None, :, None, None]).sigmoid_()
        ctx.save_for_backward(x, W, U, r, ur, z, h, n, made, norm, opened)
        return *made.unbind(0), *opened.squeeze(-1).unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, W, U, r, ur, z, h, n, made, norm, opened = ctx.saved_tensors
        vectors, valued = ctx.vectors, ctx.valued
        dmade, dlogit = torch.zeros_like(made), torch.zeros_like(opened)
        for part, grad in zip((*dmade, *dlogit.squeeze(-1)), grads, strict=True):
            part.copy_(grad)
        dmade = unit_backward(made, norm, dmade)
        dlogit.mul_(opened).mul_(1 - opened)

        dh = torch.cat([dmade @ U[:vectors].mT, dlogit * ur.mT])
        dur = h[vectors:].mT @ dlogit
        dU = torch.cat([h[:vectors].mT @ dmade, dur * r.mT])
        dr = (U[vectors:].mT @ dur + x[vectors:].mT @ dlogit).sum(1).squeeze(-1)
        dz = hidden_map.backward(Hidden(z, h, n), dh, None)
        dx = dz @ W.mT
        dx[:vectors] += dmade
        dx[vectors:] += dlogit * r.mT
        dW, dU = (_whole(d, ctx.stack) for d in (x.mT @ dz, dU))
        du = None
        if valued is not None:
            du = dx[valued].clone()
            dx[valued] = 0.0
        return dx.sum(0), du, dW, dU, dr, dlogit.sum((1, 3, 4)), None, None


def _whole(d: Tensor, stack: int) -> Tensor:
    """Zeros for the memories that were not read, rows in front."""
    full = d.new_zeros(stack, *d.shape[1:])
    full[: d.shape[0]] = d
    return full.transpose(0, 1)


def generate(
    x: Tensor,
    u: Tensor,
    weights: tuple[Tensor, Tensor],
    gates: tuple[Tensor, Tensor],
    *,
    vectors: Sequence[str],
) -> tuple[Tensor, ...]:
    """Read the first memories of a stack: unit vectors first, then one gate per read-out.

    Args:
        x: input of the keys and gates, ``(B, H, C, d)``.
        u: input of the values.
        weights: ``(B, N, H, d, m)`` and ``(B, N, H, m, d)``.
        gates: read-outs ``(gates, H, d)`` and biases ``(gates, H)``.
        vectors: names of the memories that make vectors; ``"v"`` reads ``u``.

    Returns:
        ``(B, H, C, d)`` for each vector and ``(B, H, C)`` for each gate.
    """
    valued = vectors.index("v") if "v" in vectors else None
    return _Generate.apply(x, u, *weights, *gates, len(vectors), valued)
