"""A whole chunk of two-layer memories as one function, with its derivative by hand.

The case that Hope runs: a stack of N residual MLPs (NL Eq. 89) that share keys, values and decay,
each with step sizes of its own, learn towards targets they make themselves, under DGD with decay
(NL Eq. 88). The numbers are those of ``chunked.py``; nothing is formed twice, no tape is kept, and
the derivative re-uses what the forward pass had to know anyway.

With W, U the two matrices at the anchor, rows k, v, q and E from ``products.py``:

    z = [k; v] W,   h = normalise(gelu(z)),   o = h U            the anchor under keys and values
    tau = v + o_v,  or that divided by its length                the target
    e = (k + o_k) - tau  (L2),  -tau  (dot product)              derivative of the objective
    e_in = gelu'(z_k) J^T (e U^T)                                the same before the hidden vector
    for W with (key, error, held) = (k, e_in, z_k), for U with (h_k, e, o_k):
        (I + eta D' * key key^T) w = -eta (error + A' held)
        next = A_C anchor + key^T (D[C,:] w)
    read:  z_q = A (q W) + (q k^T * D) w_W,   y = q + A (h_q U) + (h_q h_k^T * D) w_U

and where decay returns to the initial W_0, U_0, what is said in ``two_layer_parts.py`` besides.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from nestling.engine.triangular import inverse_unit_lower
from nestling.engine.two_layer_parts import Coefficients, Read, Sizes, Write
from nestling.memory import hidden_map
from nestling.memory.hidden_map import Hidden, dot
from nestling.memory.objective import L2, DotProduct
from nestling.memory.rule import Decay, DecayToInitial, Delta, LearningRule
from nestling.memory.unit import UNIT_EPS, unit_backward
from nestling.shapes import Tensor


@dataclass(frozen=True)
class TwoLayerRule:
    """The learning rules that this file knows.

    Attributes:
        squares: L2 objective, else the dot product.
        unit: targets of length one.
        hidden_step: factor of the first matrix's step sizes.
    """

    squares: bool
    unit: bool
    hidden_step: float

    @staticmethod
    def of(rule: LearningRule) -> TwoLayerRule | None:
        """The rule, if it is one of them."""
        known = (
            rule.objective in (L2(), DotProduct())
            and rule.retention in (Delta(Decay()), Delta(DecayToInitial()))
            and rule.momentum is None
            and rule.output_map is None
            and rule.values != "given"
        )
        if not known:
            return None
        return TwoLayerRule(rule.objective == L2(), rule.values == "self_unit", rule.hidden_step)


@dataclass(frozen=True)
class _Anchor:
    """The memories at the anchor under a chunk's keys and values; ``tau`` only where unit."""

    kv: Tensor
    z: Tensor
    h: Tensor
    n: Tensor
    slope: Tensor
    back: Tensor
    along: Tensor
    tau: Tensor | None
    tau_norm: Tensor | None


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, v, q, eta, E, W, U, W_0, U_0, rule, reader):
        sizes = Sizes(W.shape[1], W.shape[0], W.shape[2], k.shape[-2])
        C = sizes.C
        eta = eta.transpose(0, 1).reshape(-1, C, 1)
        W, U = _in_front(W), _in_front(U)
        W_0, U_0 = (None if M is None else _in_front(M) for M in (W_0, U_0))
        at = Coefficients.of(sizes, eta, E)

        kv = sizes.each(torch.cat([k, v], dim=-2))
        z, h, n = hidden_map.forward(torch.bmm(kv, W))
        slope = hidden_map.slope(z)
        o = torch.bmm(h, U)
        ok, zk, hk = o[:, :C], z[:, :C], h[:, :C]
        target, tau, tau_norm = o[:, C:] + kv[:, C:], None, None
        if rule.unit:
            tau_norm = torch.linalg.vector_norm(target, dim=-1, keepdim=True).clamp_(min=UNIT_EPS)
            target = tau = target.div_(tau_norm)
        error = (ok - target).add_(kv[:, :C]) if rule.squares else target.neg()
        back = torch.bmm(error, U.mT)
        along = dot(hk, back)
        error_in = hidden_map.transposed(Hidden(zk, hk, n[:, :C]), back, along)
        error_in.mul_(slope[:, :C])

        G = h.new_empty(2, *h.shape[:1], C, C)
        sizes.apart(G[0]).copy_(k @ k.mT)
        torch.bmm(hk, hk.mT, out=G[1])
        slow = eta * rule.hidden_step
        inverse = inverse_unit_lower(G * at.decay * torch.stack([slow, eta]))
        first, W_after = Write.of(at, slow, kv[:, :C], error_in, zk, W, G[0], inverse[0], W_0)
        second, U_after = Write.of(at, eta, hk, error, ok, U, G[1], inverse[1], U_0)
        y, reads = None, ()
        if q is not None:
            y, *reads = _read(sizes, reader, E, q, first, second)
        ctx.sizes, ctx.reader, ctx.rule = sizes, reader, rule
        anchor = _Anchor(kv, z, h, n, slope, back, along, tau, tau_norm)
        _keep(ctx, E, at, anchor, first, second, *reads)
        return y, sizes.apart(W_after).transpose(0, 1), sizes.apart(U_after).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dW_after, dU_after):
        sizes, rule = ctx.sizes, ctx.rule
        E, at, anchor, first, second, *reads = _kept(ctx)
        C, W, U, h = sizes.C, first.M, second.M, anchor.h
        zk, hk, nk, key = anchor.z[:, :C], h[:, :C], anchor.n[:, :C], first.key

        read = _read_backward(sizes, ctx.reader, E, reads, dy) if reads else None
        dkey, derror_in, dzk, dW, dG_first, dW_0, less = first.backward(
            at, read and (read.w_first, read.rows), _in_front(dW_after)
        )
        dhk, derror, dok, dU, dG_second, dU_0, slopes = second.backward(
            at, read and (read.w_second, read.rows), _in_front(dU_after)
        )
        slopes.add_(less, rule.hidden_step)
        dhk.baddbmm_(dG_second + dG_second.mT, hk)

        # the error before the hidden vector
        dback, dz_more, dh_more, dn = hidden_map.transposed_backward(
            Hidden(zk, hk, nk), anchor.back, anchor.along, derror_in, anchor.slope[:, :C]
        )
        derror.baddbmm_(dback, U)
        dU.baddbmm_(dback.mT, second.error)
        # the anchor under keys and values
        dtarget = derror.neg()
        if rule.unit:
            dtarget = unit_backward(anchor.tau, anchor.tau_norm, dtarget)
        if rule.squares:
            dok, dkey = dok.add_(derror), dkey.add_(derror)
        do = torch.cat([dok, dtarget], dim=1)
        dU.baddbmm_(h.mT, do)
        dh = torch.bmm(do, U.mT)
        dhk += dh_more
        if read is not None:
            dhk[read.rows] += read.hk
            for whole, part in zip((dW, dU, dW_0, dU_0), read.matrices, strict=True):
                if whole is not None:
                    whole[read.rows] += part
        dh[:, :C] += dhk
        dz = hidden_map.backward(Hidden(anchor.z, h, anchor.n), dh, dn, anchor.slope)
        dz[:, :C] += dzk.add_(dz_more)
        dW.baddbmm_(anchor.kv.mT, dz)
        dkv = torch.bmm(dz, W.mT)
        dkv[:, :C] += dkey
        dkv[:, C:] += dtarget
        dkv, dG = sizes.over(dkv), sizes.over(dG_first)
        dk = dkv[..., :C, :] + (dG + dG.mT) @ sizes.apart(key)[0]
        deta, dE = slopes.gathered(sizes, at)
        dq = None
        if read is not None:
            dk += read.k
            dE += read.E
            dq = read.q
        deta, *dM = (
            None if x is None else sizes.apart(x).transpose(0, 1)
            for x in (deta.squeeze(-1), dW, dU, dW_0, dU_0)
        )  # fmt: skip
        return dk, dkv[..., C:, :], dq, deta, dE, *dM, None, None


def _in_front(M: Tensor) -> Tensor:
    """``(B, N, H, ...)`` as ``(Z, ...)``."""
    return M.transpose(0, 1).reshape(-1, *M.shape[-2:])


def _keep(ctx, *values: Any) -> None:
    """Save tensors and dataclasses of tensors for the derivative."""
    tensors: list[Tensor | None] = []
    ctx.layout = []
    for value in values:
        parts = [value]
        if not isinstance(value, Tensor):
            parts = [getattr(value, f.name) for f in dataclasses.fields(value)]
        ctx.layout.append((None if isinstance(value, Tensor) else type(value), len(parts)))
        tensors += parts
    ctx.save_for_backward(*tensors)


def _kept(ctx) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    found = []
    for kind, count in ctx.layout:
        parts = [next(tensors) for _ in range(count)]
        found.append(parts[0] if kind is None else kind(*parts))
    return found


class _FromRead(NamedTuple):
    """Derivatives that the reads of one memory pass back, each named for what it belongs to.

    ``rows`` says where in Z the memory lies: hk, ``matrices`` (W, U, W_0, U_0) and both w are that
    part's; ``q``, ``k`` are ``(B, H, C, d)``, ``E`` ``(B, H, C+1, C+1)``.
    """

    rows: slice
    q: Tensor
    k: Tensor
    E: Tensor
    hk: Tensor
    matrices: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    w_first: Tensor
    w_second: Tensor


def _read(sizes: Sizes, reader: int, E, q, first: Write, second: Write):
    def of(write: Write) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        key, M, w = (sizes.one(x, reader) for x in (write.key, write.M, write.w))
        return key, M, w, None if write.start is None else sizes.one(write.start, reader)

    x, E = q.reshape(-1, sizes.C, q.shape[-1]), E.reshape(-1, sizes.C + 1, sizes.C + 1)
    one, z = Read.of(E, x, *of(first))
    hidden = hidden_map.forward(z)
    two, y = Read.of(E, hidden.h, *of(second))
    return y.add_(x).view(q.shape), one, two, hidden.z, hidden.n


def _read_backward(sizes: Sizes, reader: int, E, reads, dy) -> _FromRead:
    one, two, z, n = reads
    E = E.reshape(-1, sizes.C + 1, sizes.C + 1)
    dE = torch.zeros_like(E)
    dy = dy.reshape(one.x.shape)
    dh, dhk, dU, dw_second, dU_0 = two.backward(E, dy, dE)
    dz = hidden_map.backward(Hidden(z, two.x, n), dh, None)
    dx, dk, dW, dw_first, dW_0 = one.backward(E, dz, dE)
    q, k, dE = (x.view(sizes.B, sizes.H, *x.shape[1:]) for x in (dx.add_(dy), dk, dE))
    size = sizes.B * sizes.H
    return _FromRead(
        rows=slice(reader * size, (reader + 1) * size), q=q, k=k, E=dE, hk=dhk,
        matrices=(dW, dU, dW_0, dU_0), w_first=dw_first, w_second=dw_second,
    )  # fmt: skip


def two_layer_chunk(
    k: Tensor, v: Tensor, q: Tensor | None, eta: Tensor, stretches: Tensor,
    weights: tuple[Tensor, Tensor], initial: tuple[Tensor | None, Tensor | None],
    rule: TwoLayerRule, reader: int,
) -> tuple[Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Write a chunk into a stack of two-layer memories, and read one of them token by token.

    Args:
        k: keys, shared by the stack, ``(B, H, C, d)``.
        v: values, ``(B, H, C, d)``; every memory makes its own target of them.
        q: queries, ``(B, H, C, d)``, or None.
        eta: step sizes, ``(B, N, H, C)``.
        stretches: products of the gate alpha, ``(B, H, C+1, C+1)``.
        weights: both matrices at the anchor, ``(B, N, H, d, m)`` and ``(B, N, H, m, d)``; fastest
            where memories come first in memory, as in the result.
        initial: both matrices that decay returns to, shaped alike; None for zero.
        rule: objective, targets and the first matrix's step.
        reader: which memory of the stack ``q`` reads.

    Returns:
        the reads ``(B, H, C, d)`` and both matrices after the chunk.
    """
    return _Chunk.apply(k, v, q, eta, stretches, *weights, *initial, rule, reader)
