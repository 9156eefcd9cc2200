"""A gated MLP as a memory: what it reads, and its error matrix by matrix, by hand.

    [g, u] = k W,   a = silu(g) * u,   m = a U
    e_a = e U^T,    e_W = [e_a * u * silu'(g), e_a * silu(g)]

``W`` and ``U`` are ``(in, out)`` for all rows or ``(B, in, out)``. Everything is an ordinary
product, so the outer loop differentiates the inner gradient like anything else.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from nestling.continuum.rule import Surprise
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor


class Trace(NamedTuple):
    """A read and what its error needs.

    Attributes:
        k: input, ``(B, C, D)``.
        z: gate and up, ``(B, C, 2 hidden)``.
        a: hidden, ``(B, C, hidden)``.
        m: output, ``(B, C, D)``.
    """

    k: Tensor
    z: Tensor
    a: Tensor
    m: Tensor


def read(k: Float[Tensor, "B C D"], weights: Weights) -> Trace:
    """``silu(g) * u U``.

    >>> weights = {"gate_up": torch.ones(1, 2), "down": torch.ones(1, 1)}
    >>> round(float(read(torch.ones(1, 1, 1), weights).m), 4)    # sigmoid(1)
    0.7311
    """
    z = k @ weights["gate_up"].to(k.dtype)
    gate, up = z.chunk(2, dim=-1)
    a = F.silu(gate) * up
    return Trace(k, z, a, a @ weights["down"].to(k.dtype))


def surprises(
    trace: Trace, error: Float[Tensor, "B C D"], weights: Weights, *, every: bool
) -> dict[str, Surprise]:
    """Key, output and error of every matrix, or of the last, from the error of the output."""
    found = {"down": Surprise(trace.a, trace.m, error)}
    if not every:
        return found
    gate, up = trace.z.chunk(2, dim=-1)
    back = error @ weights["down"].to(error.dtype).mT
    share = gate.sigmoid()
    silu = gate * share
    slope = share + silu * (1 - share)
    through = torch.cat([back * up * slope, back * silu], dim=-1)
    return {"gate_up": Surprise(trace.k, trace.z, through), **found}
