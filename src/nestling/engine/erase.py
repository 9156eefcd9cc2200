"""The write that is used most, DGD with decay and without momentum, with its derivative by hand.

For one matrix and one chunk (docs/derivations/chunk.md; ``erase = eta D'``, ``share = D[C,:]``):

    G = K K^T,   (I + erase * G) w = -eta (error + A' held),   M_C = A_C M + K^T (share * w)

Autograd would take about twice as many passes over memory for the same derivative.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from nestling.engine.triangular import inverse_unit_lower
from nestling.shapes import Tensor


class _EraseAndWrite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, key, error, held, M, step, recall, erase, share, kept):
        G = key @ key.mT
        inverse = inverse_unit_lower(erase * G)
        w = inverse @ torch.addcmul(error, recall, held).mul_(step)
        after = torch.addcmul(key.mT @ (share * w), kept, M)
        ctx.save_for_backward(key, error, held, M, step, recall, erase, share, kept, G, inverse, w)
        return w, after

    @staticmethod
    @once_differentiable
    def backward(ctx, dw: Tensor, dafter: Tensor):
        key, error, held, M, step, recall, erase, share, kept, G, inverse, w = ctx.saved_tensors
        # M_C = A_C M + K^T (share w)
        dmoved = key @ dafter
        dshare = (dmoved * w).sum(-1, keepdim=True)
        dkept = (dafter * M).sum((-2, -1), keepdim=True)
        dkey = (share * w) @ dafter.mT
        # (I + L) w = right, L = erase * G; erase is 0 on and above the diagonal
        dright = inverse.mT @ torch.addcmul(dw, share, dmoved)
        dL = dright.neg() @ w.mT
        dG = dL * erase
        dkey += (dG + dG.mT) @ key
        # right = step (error + recall held)
        dstep = torch.addcmul(error, recall, held).mul_(dright).sum(-1, keepdim=True)
        derror = dright.mul_(step)
        dheld = derror * recall
        drecall = (derror * held).sum(-1, keepdim=True)
        found = (dkey, derror, dheld, dafter * kept, dstep, drecall, dL.mul_(G), dshare, dkept)
        inputs = (key, error, held, M, step, recall, erase, share, kept)
        return tuple(d.sum_to_size(x.shape) for d, x in zip(found, inputs, strict=True))


def erase_and_write(
    key: Tensor,
    error: Tensor,
    held: Tensor,
    M: Tensor,
    *,
    step: Tensor,
    recall: Tensor,
    erase: Tensor,
    share: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Everything that a chunk writes into one matrix, and the matrix after the chunk.

    Args:
        key: ``(..., C, I)``; leading axes may broadcast against those of ``error``.
        error: derivative of the objective at the anchor, ``(..., C, O)``.
        held: ``key @ M``, ``(..., C, O)``.
        M: ``(..., I, O)``.
        step: ``-eta``, ``(..., C, 1)``.
        recall: ``A'``, ``(..., C, 1)``.
        erase: ``eta D'``, strictly lower triangular ``(..., C, C)``.
        share: last row of ``D`` as a column, ``(..., C, 1)``.
        kept: ``A_C``, ``(..., 1, 1)``.

    Returns:
        w ``(..., C, O)`` and ``M_C`` ``(..., I, O)``.
    """
    return _EraseAndWrite.apply(key, error, held, M, step, recall, erase, share, kept)
