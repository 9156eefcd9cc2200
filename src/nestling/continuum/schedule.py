"""Which token ends which period, for every level and row: the clocks of a chain.

All control flow of a call is decided here, on the host, from clocks and lengths, before anything is
computed. Rows out of step (readings R14, R15) get segments of their own: segment i of a level is
every row's i-th stretch between two of its events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nestling.shapes import Tensor

Flag = bool | Tensor
"""For all rows, or ``(B,)`` bool for each."""

NEVER = 1 << 62


@dataclass(frozen=True, kw_only=True)
class Ends:
    """What happens after the last token of a segment, in this order.

    Attributes:
        initial_write: the next slower level's period ends: the initial state moves.
        initial_drop: the next slower level starts anew: errors for the initial state are dropped.
        write: the block's own period ends and it goes on.
        restart: the block starts anew from its initial state.
    """

    initial_write: Flag = False
    initial_drop: Flag = False
    write: Flag = False
    restart: Flag = False


NOTHING = Ends()


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A stretch of tokens under the same weights.

    Attributes:
        columns: how many columns of the layout.
        tokens: ``(B,)`` real tokens of each row.
        ends: what happens behind it.
        fresh: whether the period starts here, for all rows.
        initial_fresh: the same of the next slower level's period.
    """

    columns: int
    tokens: Tensor
    ends: Ends
    fresh: bool
    initial_fresh: bool


@dataclass(frozen=True, kw_only=True)
class Course:
    """One level's way through a call.

    Attributes:
        segments: in order of time.
        source: ``(B, columns)`` token in each column; ``None`` if columns are tokens.
        valid: ``(B, columns)`` False where a column holds no token; ``None`` if all do.
        target: ``(B, T)`` column of each token; ``None`` if columns are tokens.
        clock: ``(B,)`` after the call.
    """

    segments: tuple[Segment, ...]
    source: Tensor | None = None
    valid: Tensor | None = None
    target: Tensor | None = None
    clock: Tensor

    def spread(self, x: Tensor) -> Tensor:
        """``(B, T, D)`` tokens into columns; empty ones are zero."""
        if self.source is None or self.valid is None:
            return x
        index = self.source.to(x.device)[..., None].expand(-1, -1, x.shape[-1])
        return x.gather(1, index).masked_fill(~self.valid.to(x.device)[..., None], 0.0)

    def collect(self, y: Tensor) -> Tensor:
        """Undo :meth:`spread`; of no meaning where there is no token."""
        if self.target is None:
            return y
        return y.gather(1, self.target.to(y.device)[..., None].expand(-1, -1, y.shape[-1]))


Event = tuple[int, tuple[bool, bool, bool, bool]]
"""Tokens before it, and the flags of :class:`Ends`."""


def courses(
    periods: Sequence[int | None], clocks: Sequence[Tensor], tokens: Tensor, length: int, *,
    nested: bool = False,
) -> list[Course]:  # fmt: skip
    """Every level's way through a call.

    Args:
        periods: of the levels, fastest first.
        clocks: ``(B,)`` of each level before the call.
        tokens: ``(B,)`` real tokens of each row; they come first.
        length: T, with padding.
        nested: whether the end of a period restarts all faster levels.

    >>> once = torch.zeros(1, dtype=torch.long)
    >>> [course] = courses([3], [once + 1], once + 6, 6)
    >>> [(s.columns, s.ends.write) for s in course.segments], course.clock
    ([(2, True), (3, True), (1, False)], tensor([1]))
    """
    rows = torch.stack([*clocks, tokens], dim=1).tolist()
    kinds = {tuple(row): i for i, row in reversed(list(enumerate(rows)))}
    ways = {row: _way(periods, row[:-1], row[-1], nested) for row in kinds}
    if len(kinds) == 1 and rows[0][-1] == length:
        [(events, after)] = ways.values()
        return [
            _in_step(events[i], after[i], len(rows), length, rows[0][i], _next(rows[0][:-1], i))
            for i in range(len(periods))
        ]
    found = [ways[tuple(row)] for row in rows]
    return [
        _ragged([events[i] for events, _ in found], [after[i] for _, after in found],
                [row[-1] for row in rows], length)
        for i in range(len(periods))
    ]  # fmt: skip


def _next(clocks: Sequence[int], i: int) -> int:
    return clocks[i + 1] if i + 1 < len(clocks) else 0


def _way(
    periods: Sequence[int | None], start: Sequence[int], tokens: int, nested: bool
) -> tuple[list[list[Event]], list[int]]:
    """One row's events for each level, and its clocks afterwards."""
    whole = [NEVER if period is None else period for period in periods]
    clocks, at, count = list(start), 0, len(whole)
    events: list[list[Event]] = [[] for _ in whole]
    while True:
        step = min((size - clock for size, clock in zip(whole, clocks, strict=True)), default=NEVER)
        if step > tokens - at:
            return events, [clock + tokens - at for clock in clocks]
        at += step
        clocks = [clock + step for clock in clocks]
        ended = [clock == size for clock, size in zip(clocks, whole, strict=True)]
        slowest = max(i for i in range(count) if ended[i]) if nested else -1
        for i in range(count):
            restart = i < slowest
            slower = nested and i + 1 < count
            flags = (
                slower and ended[i + 1],
                slower and i + 1 < slowest and not ended[i + 1],
                ended[i] and not restart,
                restart,
            )
            if any(flags):
                events[i].append((at, flags))
            if ended[i] or restart:
                clocks[i] = 0


def _in_step(
    events: Sequence[Event], after: int, batch: int, length: int, clock: int, slower: int
) -> Course:
    segments, at = [], 0
    fresh, initial_fresh = clock == 0, slower == 0
    for stop, flags in [*events, (length, (False,) * 4)]:
        if stop == at:
            continue
        initial_write, initial_drop, write, restart = flags
        segments.append(
            Segment(
                columns=stop - at, tokens=torch.full((batch,), stop - at), fresh=fresh,
                initial_fresh=initial_fresh,
                ends=Ends(initial_write=initial_write, initial_drop=initial_drop, write=write,
                          restart=restart),
            )
        )  # fmt: skip
        at, fresh, initial_fresh = stop, write or restart, initial_write or initial_drop
    return Course(segments=tuple(segments), clock=torch.full((batch,), after))


def _ragged(
    events: Sequence[Sequence[Event]], after: Sequence[int], tokens: Sequence[int], length: int
) -> Course:
    """Rows out of step: every row's i-th stretch in the columns of segment i."""
    batch = len(events)
    stretches = [
        [*own, (count, (False,) * 4)] if not own or own[-1][0] < count else list(own)
        for own, count in zip(events, tokens, strict=True)
    ]
    segments, sources = [], []
    target = torch.zeros(batch, length, dtype=torch.long)
    at, first = [0] * batch, 0
    for i in range(max(len(own) for own in stretches)):
        stops = [own[i][0] if i < len(own) else at[row] for row, own in enumerate(stretches)]
        sizes = [stop - begin for stop, begin in zip(stops, at, strict=True)]
        columns = max(sizes)
        if columns == 0:
            continue
        source = torch.full((batch, columns), -1)
        for row, (begin, size) in enumerate(zip(at, sizes, strict=True)):
            source[row, :size] = torch.arange(begin, begin + size)
            target[row, begin : begin + size] = torch.arange(first, first + size)
        flags = torch.tensor(
            [own[i][1] if i < len(own) else (False,) * 4 for own in stretches], dtype=torch.bool
        )
        kinds = [_flag(flags[:, j]) for j in range(4)]
        segments.append(
            Segment(
                columns=columns, tokens=torch.tensor(sizes), fresh=False, initial_fresh=False,
                ends=Ends(initial_write=kinds[0], initial_drop=kinds[1], write=kinds[2],
                          restart=kinds[3]),
            )
        )  # fmt: skip
        sources.append(source)
        at, first = stops, first + columns
    source = torch.cat(sources, dim=1) if sources else torch.zeros(batch, 0, dtype=torch.long)
    return Course(
        segments=tuple(segments), source=source.clamp(min=0), valid=source >= 0, target=target,
        clock=torch.tensor(list(after)),
    )  # fmt: skip


def _flag(rows: Tensor) -> Flag:
    if bool(rows.all()):
        return True
    return rows if bool(rows.any()) else False
