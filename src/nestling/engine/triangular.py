"""Batches of small unit lower triangular systems ``(I + L) X = R``.

The inverse is built from diagonal blocks that double in size,

    [I+A   0 ]^-1    [        P          0 ]
    [ B   I+D]     = [ -Q B P            Q ]     P = (I+A)^-1, Q = (I+D)^-1,

so that everything is a batched matrix product, where a library's triangular solver takes the
batch one system after the other. Blocks of four start it, ``(I - N)(I + N^2)``, exact because N is
strictly lower triangular. For DGD every block of the inverse is bounded (it is a product of
transitions that do not expand), which is what keeps this accurate; larger blocks to start with
would cancel catastrophically for repeated keys at eta = 2 (docs/derivations/chunk.md).
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from nestling.shapes import Float, Tensor

BASE = 4


def inverse_unit_lower(L: Float[Tensor, "... C C"]) -> Float[Tensor, "... C C"]:
    """``(I + L)^-1`` for strictly lower triangular L.

    >>> inverse_unit_lower(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    tensor([[ 1.,  0.],
            [-2.,  1.]])
    """
    length = L.shape[-1]
    size = BASE
    while size < length:
        size *= 2
    flat = L.reshape(-1, length, length)
    if size != length:
        flat = torch.nn.functional.pad(flat, (0, size - length, 0, size - length))
    N = _diagonal_blocks(flat, BASE).reshape(-1, BASE, BASE)
    inverse = torch.eye(BASE, dtype=L.dtype, device=L.device) - N
    inverse = torch.baddbmm(inverse, inverse, torch.bmm(N, N))
    block = BASE
    while block < size:
        below = _diagonal_blocks(flat, 2 * block)[:, :, block:, :block]
        below = below.reshape(-1, block, block)
        pairs = inverse.view(-1, 2, block, block)
        P, Q = pairs[:, 0], pairs[:, 1]
        inverse = flat.new_zeros(P.shape[0], 2, block, 2, block)
        inverse.diagonal(dim1=1, dim2=3).copy_(pairs.permute(0, 2, 3, 1))
        torch.neg(torch.bmm(Q, torch.bmm(below, P)), out=inverse[:, 1, :, 0])
        inverse = inverse.view(-1, 2 * block, 2 * block)
        block *= 2
    return inverse[:, :length, :length].reshape(L.shape)


def _diagonal_blocks(flat: Tensor, size: int) -> Tensor:
    """``(batch, blocks, size, size)`` view of the diagonal blocks."""
    count = flat.shape[-1] // size
    blocks = flat.view(-1, count, size, count, size)
    return blocks.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


class _Solve(torch.autograd.Function):
    """``X = (I + L)^-1 R``; backward ``dR = (I + L)^-T dX`` and ``dL = -tril(dR X^T)``."""

    @staticmethod
    def forward(ctx, L: Tensor, R: Tensor) -> Tensor:
        inverse = inverse_unit_lower(L)
        X = inverse @ R
        ctx.save_for_backward(inverse, X)
        return X

    @staticmethod
    @once_differentiable
    def backward(ctx, dX: Tensor):
        inverse, X = ctx.saved_tensors
        dR = inverse.mT @ dX
        return torch.matmul(-dR, X.mT).tril_(-1), dR


def solve_unit_lower(
    L: Float[Tensor, "... C C"], R: Float[Tensor, "... C V"]
) -> Float[Tensor, "... C V"]:
    """Solve ``(I + L) X = R`` for strictly lower triangular L, in the dtype of R.

    >>> solve_unit_lower(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
    tensor([[ 1.],
            [-1.]])
    """
    return _Solve.apply(L, R)
