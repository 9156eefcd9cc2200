"""The parts of ``two_layer.py``: one matrix written, one matrix read, each with its derivative.

Tensors carry a batch axis Z = N B H (memories, rows, heads) in front, or B H where one memory of
the stack is read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nestling.memory.hidden_map import dot
from nestling.shapes import Tensor


@dataclass(frozen=True)
class Sizes:
    """Memories N, rows B, heads H, tokens C."""

    N: int
    B: int
    H: int
    C: int

    def each(self, x: Tensor) -> Tensor:
        """``(B, H, ...)`` for every memory of the stack, ``(Z, ...)``."""
        return x.expand(self.N, *x.shape).reshape(-1, *x.shape[2:])

    def apart(self, x: Tensor) -> Tensor:
        """``(Z, ...)`` as ``(N, B, H, ...)``."""
        return x.view(self.N, self.B, self.H, *x.shape[1:])

    def over(self, x: Tensor) -> Tensor:
        """Sum over the memories of the stack, ``(B, H, ...)``."""
        return self.apart(x)[0] if self.N == 1 else self.apart(x).sum(0)

    def one(self, x: Tensor, index: int) -> Tensor:
        """The part of one memory, ``(B H, ...)``, a view."""
        size = self.B * self.H
        return x[index * size : (index + 1) * size]


@dataclass(frozen=True)
class Coefficients:
    """What both matrices of all memories share; ``eta`` but for a factor.

    Attributes:
        eta: ``(Z, C, 1)``.
        decay: ``D'``, ``(Z, C, C)``.
        recall: ``A'``, ``(Z, C, 1)``.
        share: last row of ``D`` as a column, ``(Z, C, 1)``.
        kept: ``A_C``, ``(Z, 1, 1)``.
    """

    eta: Tensor
    decay: Tensor
    recall: Tensor
    share: Tensor
    kept: Tensor

    @staticmethod
    def of(sizes: Sizes, eta: Tensor, E: Tensor) -> Coefficients:
        """From ``eta`` ``(Z, C, 1)`` and the products ``(B, H, C+1, C+1)``."""
        return Coefficients(
            eta=eta, decay=sizes.each(E[..., :-1, 1:]), recall=sizes.each(E[..., :-1, :1]),
            share=sizes.each(E[..., -1, 1:, None]), kept=sizes.each(E[..., -1:, :1]),
        )  # fmt: skip


@dataclass(frozen=True)
class Write:
    """One matrix of every memory: ``(I + eta D' * key key^T) w = -eta (error + recalled)``.

    ``recalled = A' held``, and where decay returns to an initial matrix ``M_0`` instead of to zero
    ``A' held + (1 - A') key M_0``.

    Attributes:
        eta: its own step sizes, ``(Z, C, 1)``.
        key: ``(Z, C, I)``.
        error: derivative of the objective at the anchor, ``(Z, C, O)``.
        held: ``key M``, ``(Z, C, O)``.
        M: the anchor, ``(Z, I, O)``.
        G: ``key key^T``, ``(Z, C, C)``.
        inverse: of the system's matrix, ``(Z, C, C)``.
        w: the solution, ``(Z, C, O)``.
        start: ``M_0`` or None.
        held_start: ``key M_0``; without ``M_0`` empty.
    """

    eta: Tensor
    key: Tensor
    error: Tensor
    held: Tensor
    M: Tensor
    G: Tensor
    inverse: Tensor
    w: Tensor
    start: Tensor | None
    held_start: Tensor

    @staticmethod
    def of(at: Coefficients, eta, key, error, held, M, G, inverse, start) -> tuple[Write, Tensor]:
        """Solve for what is written, and the matrix after the chunk."""
        if start is None:
            held_start, after = held.new_empty(0), M * at.kept
            right = torch.addcmul(error, at.recall, held)
        else:
            held_start = torch.bmm(key, start)
            right = torch.lerp(held_start, held, at.recall).add_(error)
            after = torch.lerp(start, M, at.kept)
        w = torch.bmm(inverse, right.mul_(-eta))
        after.baddbmm_(key.mT, w * at.share)
        return Write(eta, key, error, held, M, G, inverse, w, start, held_start), after

    def backward(self, at: Coefficients, dw: tuple[Tensor, slice] | None, dafter: Tensor):
        """Derivatives for key, error, held, M, G and M_0, and for the :class:`Coefficients`.

        ``dw`` is that of a part of the stack. Neither ``held = key M`` nor ``G = key key^T`` is
        followed here; ``key M_0`` is.
        """
        w, start, held_start = self.w, self.start, self.held_start
        dmoved = torch.bmm(self.key, dafter)
        dshare = dot(dmoved, w)
        dkey = torch.bmm(w * at.share, dafter.mT)
        dtotal = dmoved.mul_(at.share)
        if dw is not None:
            dtotal[dw[1]] += dw[0]
        # minus the derivative of the right-hand side
        against = torch.empty_like(dtotal).baddbmm_(self.inverse.mT, dtotal, beta=0, alpha=-1)
        dL = torch.bmm(against, w.mT)
        dG = dL * at.decay * self.eta
        beyond, offset = self.held, self.M
        if start is not None:
            beyond, offset = self.held - held_start, self.M - start
        dkept = (dafter * offset).sum((-2, -1), keepdim=True)
        along_held = dot(against, beyond)
        deta = dot(against, self.error).addcmul_(along_held, at.recall)
        if start is not None:
            deta += dot(against, held_start)
        slopes = Slopes(deta, dL.mul_(self.G), along_held.mul_(self.eta), dshare, dkept)
        derror = against.mul_(self.eta)
        dheld, dM, dstart = derror * at.recall, dafter * at.kept, None
        if start is not None:
            dheld_start = derror - dheld
            dstart = (dafter - dM).baddbmm_(self.key.mT, dheld_start)
            dkey.baddbmm_(dheld_start, start.mT)
        return dkey, derror, dheld, dM, dG, dstart, slopes


@dataclass(frozen=True)
class Slopes:
    """Derivatives of the coefficients; ``erase`` is that of ``eta D'``, ``eta`` the rest's."""

    eta: Tensor
    erase: Tensor
    recall: Tensor
    share: Tensor
    kept: Tensor

    def add_(self, other: Slopes, step: float) -> Slopes:
        """Those of a matrix whose ``eta`` is ``step`` times this one's, added in place."""
        for name in ("eta", "erase", "recall", "share", "kept"):
            factor = step if name in ("eta", "erase") else 1.0
            getattr(self, name).add_(getattr(other, name), alpha=factor)
        return self

    def gathered(self, sizes: Sizes, at: Coefficients) -> tuple[Tensor, Tensor]:
        """``deta`` ``(Z, C, 1)`` and ``dE`` ``(B, H, C+1, C+1)`` with the stack summed up."""
        C = sizes.C
        deta = self.eta + dot(self.erase, at.decay)
        dE = self.eta.new_zeros(sizes.B, sizes.H, C + 1, C + 1)
        dE[..., :-1, 1:] = sizes.over(self.erase.mul_(at.eta))
        dE[..., :-1, :1] = sizes.over(self.recall)
        dE[..., -1, 1:] += sizes.over(self.share).squeeze(-1)
        dE[..., -1:, :1] += sizes.over(self.kept)
        return deta, dE


@dataclass(frozen=True)
class Read:
    """Token-exact reads of one matrix: ``y = A (x M) + (x key^T * D) w``, all ``(B H, ...)``.

    With a matrix that decay returns to, ``y`` has ``(1 - A) (x M_0)`` besides.
    """

    x: Tensor
    key: Tensor
    M: Tensor
    w: Tensor
    start: Tensor | None
    anchored: Tensor
    anchored_start: Tensor
    overlap: Tensor

    @staticmethod
    def of(
        E: Tensor, x: Tensor, key: Tensor, M: Tensor, w: Tensor, start: Tensor | None
    ) -> tuple[Read, Tensor]:
        """The reads, ``(B H, C, O)``; E is ``(B H, C+1, C+1)``."""
        anchored, overlap, A = torch.bmm(x, M), torch.bmm(x, key.mT), E[:, 1:, :1]
        if start is None:
            anchored_start, y = x.new_empty(0), anchored * A
        else:
            anchored_start = torch.bmm(x, start)
            y = torch.lerp(anchored_start, anchored, A)
        y.baddbmm_(overlap * E[:, 1:, 1:], w)
        return Read(x, key, M, w, start, anchored, anchored_start, overlap), y

    def backward(self, E: Tensor, dy: Tensor, dE: Tensor):
        """Derivatives for ``x``, ``key``, ``M``, ``w``, ``M_0``; that of E is added to ``dE``."""
        A, D = E[:, 1:, :1], E[:, 1:, 1:]
        beyond = self.anchored if self.start is None else self.anchored - self.anchored_start
        dE[:, 1:, :1] += dot(dy, beyond)
        dw = torch.bmm((self.overlap * D).mT, dy)
        dreads = torch.bmm(dy, self.w.mT)
        dE[:, 1:, 1:] += dreads * self.overlap
        dreads = dreads.mul_(D)
        faded, dstart = dy * A, None
        dx = torch.bmm(faded, self.M.mT).baddbmm_(dreads, self.key)
        if self.start is not None:
            rest = dy - faded
            dx.baddbmm_(rest, self.start.mT)
            dstart = torch.bmm(self.x.mT, rest)
        return dx, torch.bmm(dreads.mT, self.x), torch.bmm(self.x.mT, faded), dw, dstart
