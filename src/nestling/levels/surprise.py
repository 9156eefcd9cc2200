"""Noticing by the loss alone that something new has begun.

    z = (mean of the last m losses - median of the n before) / (spread of those n / sqrt(m))

where the spread is 1.4826 times the median absolute deviation, the standard deviation of a normal
distribution that outliers cannot move.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch


class Surprise:
    """Losses seen one by one, and whether the last of them do not belong to those before.

    Args:
        threshold: the z at which they do not.
        recent: losses m that are compared; one alone may be an accident.
        window: losses n that they are compared with; until so many are known nothing is a surprise.

    Raises:
        ValueError: if a number is out of range.

    >>> notice = Surprise(threshold=6.0, recent=2, window=4)
    >>> [notice(loss) for loss in [2.0, 2.1, 1.9, 2.0, 3.0, 3.0, 3.0]]
    [False, False, False, False, False, True, False]
    """

    def __init__(self, *, threshold: float = 6.0, recent: int = 4, window: int = 40) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold: expected a positive number, got {threshold}")
        if recent < 1:
            raise ValueError(f"recent: expected at least 1, got {recent}")
        if window < 2 * recent:
            raise ValueError(f"window: expected at least {2 * recent}, got {window}")
        self.threshold, self.recent, self.window = threshold, recent, window
        self.losses: list[float] = []

    def __call__(self, loss: float) -> bool:
        """Whether something new has begun; then what was seen before counts no longer."""
        self.losses = [*self.losses, loss][-(self.window + self.recent) :]
        if self.z() <= self.threshold:
            return False
        self.losses = []
        return True

    def z(self) -> float:
        """How far the last losses are from those before; 0 while there are too few."""
        before = torch.tensor(self.losses[: -self.recent], dtype=torch.float64)
        if len(before) < self.window:
            return 0.0
        median = before.median()
        spread = 1.4826 * float((before - median).abs().median())
        now = sum(self.losses[-self.recent :]) / self.recent
        # A loss that did not vary at all would make everything a surprise.
        floor = 0.01 * abs(float(median)) + 1e-12
        return (now - float(median)) / (max(spread, floor) / math.sqrt(self.recent))

    def state(self) -> dict[str, Any]:
        """The losses that count."""
        return {"losses": list(self.losses)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.losses = [float(loss) for loss in state["losses"]]
