"""A whole chunk of two-layer memories as one function, with its derivative by hand.

The case that Hope runs: a stack of N residual MLPs (NL Eq. 89) that share keys, values and decay,
each with step sizes of its own, learn the L2 objective towards targets they make themselves, under
DGD with decay (NL Eq. 88). The numbers are those of ``chunked.py``; nothing is formed twice, no
tape is kept, and the derivative re-uses what the forward pass had to know anyway.

With W, U the two matrices at the anchor, rows k, v, q and E from ``products.py``:

    z = [k; v] W,   h = normalise(gelu(z)),   o = h U            the anchor under keys and values
    e = (k + o_k) - (v + o_v)                                    derivative of the objective
    e_in = gelu'(z_k) J^T (e U^T)                                the same before the hidden vector
    for W with (key, error, held) = (k, e_in, z_k), for U with (h_k, e, o_k):
        (I + eta D' * key key^T) w = -eta (error + A' held)
        next = A_C anchor + key^T (D[C,:] w)
    read:  z_q = A (q W) + (q k^T * D) w_W,   y = q + A (h_q U) + (h_q h_k^T * D) w_U
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

from nestling.engine.triangular import inverse_unit_lower
from nestling.engine.two_layer_parts import Coefficients, Read, Sizes, Write
from nestling.memory import hidden_map
from nestling.memory.hidden_map import Hidden, dot
from nestling.shapes import Tensor


@dataclass(frozen=True)
class _Saved:
    """What the forward pass keeps for the derivative, by name."""

    E: Tensor
    kv: Tensor
    W: Tensor
    U: Tensor
    z: Tensor
    h: Tensor
    n: Tensor
    slope: Tensor
    ok: Tensor
    error: Tensor
    back: Tensor
    along: Tensor
    error_in: Tensor
    G: Tensor
    inverse: Tensor
    w_first: Tensor
    w_second: Tensor


class _Chunk(torch.autograd.Function):
    @staticmethod
    def forward(ctx, k, v, q, eta, E, W, U, reader):
        B, N, H, d, m = W.shape
        sizes = Sizes(N, B, H, k.shape[-2])
        C = sizes.C
        eta = eta.transpose(0, 1).reshape(-1, C, 1)
        W, U = W.transpose(0, 1).reshape(-1, d, m), U.transpose(0, 1).reshape(-1, m, d)
        at = Coefficients.of(sizes, eta, E)

        kv = sizes.each(torch.cat([k, v], dim=-2))
        z, h, n = hidden_map.forward(torch.bmm(kv, W))
        slope = hidden_map.slope(z)
        o = torch.bmm(h, U)
        ok, zk, hk = o[:, :C], z[:, :C], h[:, :C]
        error = (ok - o[:, C:]).add_(kv[:, :C]).sub_(kv[:, C:])
        back = torch.bmm(error, U.mT)
        along = dot(hk, back)
        error_in = hidden_map.transposed(Hidden(zk, hk, n[:, :C]), back, along)
        error_in.mul_(slope[:, :C])

        G = h.new_empty(2, *h.shape[:1], C, C)
        sizes.apart(G[0]).copy_(k @ k.mT)
        torch.bmm(hk, hk.mT, out=G[1])
        inverse = inverse_unit_lower(G * at.erase)
        first, W_after = Write.of(at, kv[:, :C], error_in, zk, W, G[0], inverse[0])
        second, U_after = Write.of(at, hk, error, ok, U, G[1], inverse[1])
        y, reads = None, ()
        if q is not None:
            y, reads = _read(sizes, reader, E, q, first, second)
        ctx.sizes, ctx.reader = sizes, reader
        ctx.save_for_backward(
            at.eta, at.decay, at.erase, at.recall, at.share, at.kept,
            E, kv, W, U, z, h, n, slope, ok, error, back, along, error_in, G, inverse,
            first.w, second.w, *reads,
        )  # fmt: skip
        return y, sizes.apart(W_after).transpose(0, 1), sizes.apart(U_after).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, dW_after, dU_after):
        sizes, reader = ctx.sizes, ctx.reader
        tensors = ctx.saved_tensors
        at, saved, reads = Coefficients(*tensors[:6]), _Saved(*tensors[6:23]), tensors[23:]
        C, W, U, h = sizes.C, saved.W, saved.U, saved.h
        zk, hk, nk, key = saved.z[:, :C], h[:, :C], saved.n[:, :C], saved.kv[:, :C]
        first = Write(key, saved.error_in, zk, W, saved.G[0], saved.inverse[0], saved.w_first)
        second = Write(hk, saved.error, saved.ok, U, saved.G[1], saved.inverse[1], saved.w_second)
        dW_after = dW_after.transpose(0, 1).reshape(W.shape)
        dU_after = dU_after.transpose(0, 1).reshape(U.shape)

        read = _read_backward(sizes, reader, saved.E, first, second, reads, dy) if reads else None
        dkey, derror_in, dzk, dW, dG_first, slopes = first.backward(
            at, read and (read.w_first, read.rows), dW_after
        )
        dhk, derror, dok, dU, dG_second, more = second.backward(
            at, read and (read.w_second, read.rows), dU_after
        )
        slopes.add_(more)
        dhk.baddbmm_(dG_second + dG_second.mT, hk)

        # the error before the hidden vector
        dback, dz_more, dh_more, dn = hidden_map.transposed_backward(
            Hidden(zk, hk, nk), saved.back, saved.along, derror_in, saved.slope[:, :C]
        )
        derror.baddbmm_(dback, U)
        dU.baddbmm_(dback.mT, saved.error)
        # the anchor under keys and values
        do = torch.cat([dok.add_(derror), -derror], dim=1)
        dU.baddbmm_(h.mT, do)
        dh = torch.bmm(do, U.mT)
        dhk += dh_more
        if read is not None:
            dhk[read.rows] += read.hk
            dU[read.rows] += read.U
            dW[read.rows] += read.W
        dh[:, :C] += dhk
        dz = hidden_map.backward(Hidden(saved.z, h, saved.n), dh, dn, saved.slope)
        dz[:, :C] += dzk.add_(dz_more)
        dW.baddbmm_(saved.kv.mT, dz)
        dkv = torch.bmm(dz, W.mT)
        dkv[:, :C] += dkey.add_(derror)
        dkv[:, C:] -= derror
        dkv = sizes.over(dkv)
        dG = sizes.over(dG_first)
        dk = dkv[..., :C, :] + (dG + dG.mT) @ sizes.apart(key)[0]
        deta, dE = slopes.gathered(sizes, at)
        dq = None
        if read is not None:
            dk += read.k
            dE += read.E
            dq = read.q
        deta, dW, dU = (sizes.apart(x).transpose(0, 1) for x in (deta.squeeze(-1), dW, dU))
        return dk, dkv[..., C:, :], dq, deta, dE, dW, dU, None


class _FromRead(NamedTuple):
    """Derivatives that the reads of one memory pass back, each named for what it belongs to.

    ``rows`` says where in Z the memory lies: hk, W, U and both w are that part's; ``q``, ``k`` are
    ``(B, H, C, d)``, ``E`` ``(B, H, C+1, C+1)``.
    """

    rows: slice
    q: Tensor
    k: Tensor
    E: Tensor
    hk: Tensor
    W: Tensor
    U: Tensor
    w_first: Tensor
    w_second: Tensor


def _read(sizes: Sizes, reader: int, E, q, first: Write, second: Write):
    C = sizes.C

    def of(write: Write) -> tuple[Tensor, Tensor, Tensor]:
        key, M, w = (sizes.one(x, reader) for x in (write.key, write.M, write.w))
        return key, M, w

    x, E = q.reshape(-1, C, q.shape[-1]), E.reshape(-1, C + 1, C + 1)
    one, z = Read.of(E, x, *of(first))
    hidden = hidden_map.forward(z)
    two, y = Read.of(E, hidden.h, *of(second))
    return y.add_(x).view(q.shape), (
        x,
        one.anchored,
        one.overlap,
        *hidden,
        two.anchored,
        two.overlap,
    )


def _read_backward(sizes: Sizes, reader: int, E, first: Write, second: Write, reads, dy):
    C, heads = sizes.C, (sizes.B, sizes.H)
    x, anchored_one, overlap_one, *hidden, anchored_two, overlap_two = reads
    hidden = Hidden(*hidden)

    def of(write: Write) -> tuple[Tensor, Tensor, Tensor]:
        key, M, w = (sizes.one(x, reader) for x in (write.key, write.M, write.w))
        return key, M, w

    def apart(x: Tensor) -> Tensor:
        return x.view(*heads, *x.shape[1:])

    E = E.reshape(-1, C + 1, C + 1)
    dE = torch.zeros_like(E)
    dy = dy.reshape(x.shape)
    two = Read(hidden.h, *of(second), anchored_two, overlap_two)
    dh, dhk, dU, dw_second = two.backward(E, dy, dE)
    one = Read(x, *of(first), anchored_one, overlap_one)
    dx, dk, dW, dw_first = one.backward(E, hidden_map.backward(hidden, dh, None), dE)
    size = sizes.B * sizes.H
    return _FromRead(
        rows=slice(reader * size, (reader + 1) * size), q=apart(dx.add_(dy)), k=apart(dk),
        E=apart(dE), hk=dhk, W=dW, U=dU, w_first=dw_first, w_second=dw_second,
    )  # fmt: skip


def two_layer_chunk(
    k: Tensor, v: Tensor, q: Tensor | None, eta: Tensor, stretches: Tensor,
    weights: tuple[Tensor, Tensor], reader: int,
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
        reader: which memory of the stack ``q`` reads.

    Returns:
        the reads ``(B, H, C, d)`` and both matrices after the chunk.
    """
    return _Chunk.apply(k, v, q, eta, stretches, *weights, reader)
