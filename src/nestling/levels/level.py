"""A level: how often a component's state is updated (NL Def. 2-4).

The unit of time is one token. A component that is written with every token has period 1, a block
that is held for 512 tokens and then moved has period 512, weights that never move have no period.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, order=False)
class Level:
    """An update period in tokens; ``None`` means never.

    Raises:
        ValueError: if ``period`` is not a positive whole number.

    >>> Level(512).frequency
    0.001953125
    >>> Level(1).faster_than(Level(512))
    True
    """

    period: int | None = 1

    def __post_init__(self) -> None:
        if self.period is not None and (not isinstance(self.period, int) or self.period < 1):
            raise ValueError(f"period: expected a whole number >= 1 or None, got {self.period!r}")

    @property
    def frequency(self) -> float:
        """Updates per token (NL Def. 2)."""
        return 0.0 if self.period is None else 1.0 / self.period

    @property
    def sort_key(self) -> float:
        """Period as a number that sorts: never is infinity."""
        return math.inf if self.period is None else float(self.period)

    def faster_than(self, other: Level) -> bool:
        """Whether this level is updated more often than ``other``."""
        return self.sort_key < other.sort_key
