"""Where chunks begin and end for every row of a batch: the clock of a scan.

A chunk may be open when a stream is cut, and padded tokens do not move a row's clock (readings
R14, R15), so rows of one batch can stand at different places of their chunks. All control flow
is decided here, on the host, from ``position`` and ``mask``; the engines see only segments that
never cross a chunk's boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nestling.shapes import Tensor

FILL = 1.0
"""What padded vectors are replaced by: finite, and away from the zero vector's singular norm."""


@dataclass(frozen=True)
class Segment:
    """Columns ``start:stop`` of the laid-out tokens, inside one chunk.

    Attributes:
        opens: whether the chunk starts here, for all rows or for each.
        closes: whether the chunk ends here, for all rows or for each.
        closing: ``(B, stop - start)`` bool, the token that completes the chunk.
    """

    start: int
    stop: int
    opens: bool | Tensor
    closes: bool | Tensor
    closing: Tensor


@dataclass(frozen=True)
class Layout:
    """The segments of a scan and, if rows are out of step, where each token is placed.

    Attributes:
        segments: in order of time.
        valid: ``(B, columns)`` bool, False where a column holds no real token; None if all do.
        source: ``(B, columns)`` token held by each column; None if columns are tokens.
        target: ``(B, T)`` column of each token; None if columns are tokens.
        position: ``(B,)`` clock after the scan.
    """

    segments: tuple[Segment, ...]
    valid: Tensor | None
    source: Tensor | None
    target: Tensor | None
    position: Tensor

    @property
    def sizes(self) -> list[int]:
        """Columns of each segment."""
        return [segment.stop - segment.start for segment in self.segments]

    def spread(self, x: Tensor, *, axis: int, fill: float = FILL) -> Tensor:
        """Place tokens into columns along ``axis`` (-1 or -2) and ``fill`` the empty ones."""
        if self.source is not None:
            x = _take(x, self.source, axis)
        if self.valid is None:
            return x
        valid = _along(self.valid.to(x.device), x.dim(), axis)
        return torch.where(valid, x, torch.as_tensor(fill, dtype=x.dtype, device=x.device))

    def collect(self, y: Tensor, *, axis: int) -> Tensor:
        """Undo :meth:`spread`: one entry for every token (of no meaning where it is padding)."""
        return y if self.target is None else _take(y, self.target, axis)


def plan(
    position: Tensor | None, mask: Tensor | None, *, batch: int, length: int, chunk_size: int
) -> Layout:
    """Cut ``length`` tokens of ``batch`` rows into segments at the rows' chunk boundaries.

    Args:
        position: ``(B,)`` tokens already in the open chunk, or None for a fresh start.
        mask: ``(B, T)`` False where padded, or None.
        batch: rows B.
        length: tokens T.
        chunk_size: tokens C in a chunk.

    >>> [(s.start, s.stop, s.opens, s.closes)
    ...  for s in plan(torch.tensor([3]), None, batch=1, length=6, chunk_size=4).segments]
    [(0, 1, False, True), (1, 5, True, True), (5, 6, True, False)]
    """
    start = torch.zeros(batch, dtype=torch.long) if position is None else position.cpu()
    if mask is not None:
        mask = mask.cpu()
        if bool(mask.all()):
            mask = None
    if mask is None and bool((start == start[0]).all()):
        return _uniform(int(start[0]), batch, length, chunk_size)
    if mask is None:
        mask = torch.ones(batch, length, dtype=torch.bool)
    if bool((start + mask.sum(-1) <= chunk_size).all()):
        segment = _segment(0, length, start, mask, chunk_size)
        return Layout((segment,), mask, None, None, (start + mask.sum(-1)) % chunk_size)
    return _aligned(start, mask, chunk_size)


def _uniform(start: int, batch: int, length: int, chunk_size: int) -> Layout:
    """All rows in step and nothing padded: columns are tokens."""
    segments, column, place = [], 0, start
    while column < length:
        stop = min(length, column + chunk_size - place)
        closes = place + stop - column == chunk_size
        closing = torch.zeros(batch, stop - column, dtype=torch.bool)
        closing[:, -1] = closes
        segments.append(Segment(column, stop, place == 0, closes, closing))
        column, place = stop, 0
    position = torch.full((batch,), (start + length) % chunk_size)
    return Layout(tuple(segments), None, None, None, position)


def _aligned(start: Tensor, mask: Tensor, chunk_size: int) -> Layout:
    """Rows out of step: shift each so that chunk boundaries fall on common columns."""
    batch = mask.shape[0]
    first = int(start.min())
    place = start[:, None] + mask.long().cumsum(-1) - 1
    width = int((start + mask.sum(-1)).max()) - first
    target = torch.where(mask, place - first, 0).clamp(min=0)
    source = torch.zeros(batch, width, dtype=torch.long)
    valid = torch.zeros(batch, width, dtype=torch.bool)
    rows, tokens = mask.nonzero(as_tuple=True)
    source[rows, target[rows, tokens]] = tokens
    valid[rows, target[rows, tokens]] = True
    segments, column, clock = [], 0, start
    while column < width:
        stop = min(width, (column + first) // chunk_size * chunk_size + chunk_size - first)
        segments.append(_segment(column, stop, clock, valid[:, column:stop], chunk_size))
        clock = (clock + valid[:, column:stop].sum(-1)) % chunk_size
        column = stop
    return Layout(tuple(segments), valid, source, target, clock)


def _segment(start: int, stop: int, clock: Tensor, valid: Tensor, chunk_size: int) -> Segment:
    place = clock[:, None] + valid.long().cumsum(-1)
    closing = valid & (place == chunk_size)
    return Segment(start, stop, clock == 0, closing.any(-1), closing)


def _along(flags: Tensor, dims: int, axis: int) -> Tensor:
    """``(B, T)`` flags shaped to broadcast against a tensor with tokens on ``axis``."""
    shape = [1] * dims
    shape[0], shape[axis] = flags.shape
    return flags.reshape(shape)


def _take(x: Tensor, index: Tensor, axis: int) -> Tensor:
    index = _along(index.to(x.device), x.dim(), axis)
    shape = list(x.shape)
    shape[axis] = index.shape[axis]
    return x.gather(axis, index.expand(shape))
