"""A text that comes in pieces cut anywhere: tokens whose chunk is open, then the new ones.

What every reader needs that learns from the loss of whole chunks: which token follows which, which
losses are known, and whose they are. Positions count from the first open token of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from nestling.models.packing import Packed
from nestling.shapes import Tensor


class Piece(NamedTuple):
    """Losses of columns, and which tokens of the text they are: ``size`` from ``start`` on."""

    nats: Tensor
    start: Tensor
    size: Tensor


class Kept(NamedTuple):
    """The tokens of the open chunk, as a state carries them.

    Attributes:
        ids: ``(B, C)``, the tokens and zeros behind them.
        targets: ``(B, C)`` the token after each, zero where it is not known.
        count: ``(B,)`` tokens.
    """

    ids: Tensor
    targets: Tensor
    count: Tensor


class Joined:
    """Kept tokens and new ones without a gap, and the losses that were found for them.

    Args:
        packed: the call's own tokens.
        waiting: ``(B,)`` 1 where the last token that was read has no target yet.
        kept: tokens of the open chunk; ``None`` if no chunk is kept.

    Attributes:
        open: ``(B,)`` tokens before the new ones.
        end: ``(B,)`` tokens in all.
        waiting: ``(B,)`` 1 where the last of them has no target yet.
        known: ``(B,)`` tokens that have a target.
        ids: ``(B, M)`` tokens.
        targets: ``(B, M)`` the token after each.

    >>> from nestling.models.packing import pack
    >>> none = torch.zeros(1, dtype=torch.long)
    >>> text = Joined(pack(torch.tensor([[7, 8, 9]]), None), none, None)
    >>> text.targets.tolist(), text.known.tolist()
    ([[8, 9, 0]], [2])
    """

    def __init__(self, packed: Packed, waiting: Tensor, kept: Kept | None) -> None:
        self.packed, self._waited, self._kept = packed, waiting, kept
        self.open = waiting if kept is None else kept.count
        self.end = self.open + packed.lengths
        self.waiting = waiting
        if packed.targets is None:
            self.waiting = waiting.masked_fill(packed.lengths > 0, 1)
        self.known = self.end - self.waiting
        self.ids, self.targets = self._joined()
        self._pieces: list[Piece] = []

    def add(self, nats: Tensor, start: Tensor, size: Tensor) -> None:
        """Losses of ``size`` tokens from ``start`` on."""
        self._pieces.append(Piece(nats, start, size))

    def collected(self) -> tuple[Tensor, Tensor]:
        """``(B, T)`` losses of the call's own tokens and which there are."""
        packed = self.packed
        width = packed.ids.shape[1]
        place = torch.zeros(len(self.end), max(1, int(self.end.max())), dtype=torch.long)
        first = 0
        for piece in self._pieces:
            for row, (start, size) in enumerate(
                zip(piece.start.tolist(), piece.size.tolist(), strict=True)
            ):
                place[row, start : start + size] = torch.arange(first, first + size)
            first += piece.nats.shape[1]
        new = torch.arange(width)[None]
        scored = new < packed.lengths[:, None]
        position = self.open[:, None] + new
        if packed.targets is None:
            position = position - 1
            scored = scored & ((new > 0) | (self._waited[:, None] > 0))
        position = position.clamp(min=0, max=place.shape[1] - 1)
        every = torch.cat([piece.nats for piece in self._pieces], dim=1)
        nats = every.gather(1, place.gather(1, position).to(every.device))
        scored = scored.to(every.device)
        return packed.back(nats.masked_fill(~scored, 0.0)), packed.back(scored)

    def _joined(self) -> tuple[Tensor, Tensor]:
        packed, size = self.packed, max(1, int(self.end.max()))
        old, rows = self._kept, len(self.end)
        ids, targets = (torch.zeros(rows, size, dtype=torch.long) for _ in range(2))
        for row, (count, new) in enumerate(
            zip(self.open.tolist(), packed.lengths.tolist(), strict=True)
        ):
            if old is not None:
                ids[row, :count] = old.ids[row, :count]
                targets[row, :count] = old.targets[row, :count]
            ids[row, count : count + new] = packed.ids[row, :new]
            if packed.targets is not None:
                targets[row, count : count + new] = packed.targets[row, :new]
            elif new:
                targets[row, count : count + new - 1] = packed.ids[row, 1:new]
                if bool(self._waited[row]):
                    targets[row, count - 1] = packed.ids[row, 0]
        return ids, targets
