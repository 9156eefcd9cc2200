"""Noticing by the loss alone that something new has begun.

    z = (mean of the last m losses - mean of the n before) / (s sqrt(1 / m + 1 / n))
    s = sqrt(pi) / 2 x mean of |l_i+1 - l_i| among those n

The spread s is that of a normal distribution, found from neighbours: a loss that falls while
it is learned does not make it larger. On normal noise alone, 1,000 losses raise a false alarm in
about one of fifteen runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from nestling.shapes import Tensor


class Surprise:
    """Losses seen one by one, and whether the last of them do not belong to those before.

    Args:
        threshold: the z at which they do not.
        recent: losses m that are compared; a few alone may be an accident.
        before: losses n that they are compared with; until so many are known nothing surprises.

    Raises:
        ValueError: if a number is out of range.

    >>> notice = Surprise(recent=2, before=4)
    >>> [notice(loss) for loss in [2.0, 2.1, 1.9, 2.0, 3.0, 3.0, 3.0]]
    [False, False, False, False, False, True, False]
    """

    def __init__(self, *, threshold: float = 4.5, recent: int = 8, before: int = 32) -> None:
        if not threshold > 0:
            raise ValueError(f"threshold: expected a positive number, got {threshold}")
        if recent < 1:
            raise ValueError(f"recent: expected at least 1, got {recent}")
        if before < 3:
            raise ValueError(f"before: expected at least 3, got {before}")
        self.threshold, self.recent, self.before = threshold, recent, before
        self.losses: list[float] = []

    def __call__(self, loss: float) -> bool:
        """Whether something new has begun; then what was seen before counts no longer."""
        self.losses = [*self.losses, loss][-(self.before + self.recent) :]
        if self.z() <= self.threshold:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """What was seen before counts no longer."""
        self.losses = []

    def z(self) -> float:
        """How far the last losses are from those before; 0 while there are too few."""
        if len(self.losses) < self.before + self.recent:
            return 0.0
        losses = torch.tensor(self.losses, dtype=torch.float64)
        before, recent = losses[: self.before], losses[self.before :]
        spread = math.sqrt(math.pi) / 2 * float(before.diff().abs().mean())
        # A loss that did not vary at all would make everything a surprise.
        spread = max(spread, 0.01 * abs(float(before.mean())), 1e-12)
        error = spread * math.sqrt(1 / self.recent + 1 / self.before)
        return (float(recent.mean()) - float(before.mean())) / error

    def state(self) -> dict[str, Any]:
        """The losses that count."""
        return {"losses": list(self.losses)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.losses = [float(loss) for loss in state["losses"]]


class Shift:
    """Noticing by the tokens alone that something new has begun.

        u_i = -mean over the tokens x of batch i of  ln (n_x + 1) / (n + V)

    with n_x the number of x, and n that of all tokens, since the last shift.
    A language or a script that is no harder than the one before raises no loss, but its tokens are
    others. The :class:`Surprise` of u sees that; no model is asked.

    Args:
        vocabulary: V; token ids are below it.
        threshold: as for :class:`Surprise`.

    >>> notice, a, b = Shift(4), torch.tensor([0, 1, 0, 1, 1]), torch.tensor([2, 3, 2, 2, 3])
    >>> sum(notice(torch.roll(a, i)[:4]) for i in range(50)), [notice(b) for _ in range(3)]
    (0, [True, False, False])
    """

    def __init__(self, vocabulary: int, *, threshold: float = 4.5) -> None:
        self._surprise = Surprise(threshold=threshold)
        self._counts = torch.zeros(vocabulary, dtype=torch.float64)

    def __call__(self, ids: Tensor) -> bool:
        """Whether these tokens do not belong to those before."""
        seen = torch.bincount(ids.flatten().cpu(), minlength=len(self._counts))
        share = (self._counts + 1) / (self._counts.sum() + len(self._counts))
        shifted = self._surprise(float(-(seen * share.log()).sum() / seen.sum()))
        if shifted:
            self.forget()
        self._counts += seen
        return shifted

    def forget(self) -> None:
        """What was seen before counts no longer."""
        self._surprise.forget()
        self._counts.zero_()

    def state(self) -> dict[str, Any]:
        """What was seen lately; not copied."""
        return {"counts": self._counts, "surprise": self._surprise.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self._counts = state["counts"].double().cpu().clone()
        self._surprise.load_state(state["surprise"])
