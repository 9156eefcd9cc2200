"""Dark experience replay (DER++): keep the scores of what was, not only its answer.

    L = -ln p(y | x) + alpha |f(x') - z'|^2 / classes + beta (-ln p(y'' | x''))

where z' are the scores that the model gave when it saw x'. Buzzega et al. 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import nn

from nestling.continual.protocol import IGNORED, Batch
from nestling.continual.strategies.base import GradientLearner, cross_entropy
from nestling.continual.strategies.reservoir import Reservoir
from nestling.optim import adamw
from nestling.optim.levelwise import Make


class DarkReplay(GradientLearner):
    """Replay of stored examples by their former scores and by their targets.

    Args:
        model: as for every strategy, like ``make`` and ``**options``.
        capacity: examples that are stored, each with its scores.
        rows: drawn for each of the two terms; ``None``: as many as are new.
        alpha: weight of the former scores.
        beta: weight of the targets; 0 is DER without the pluses.
        seed: of what is kept and drawn.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        capacity: int,
        rows: int | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {value}")
        super().__init__(model, make, **options)
        self.buffer, self.rows = Reservoir(capacity, seed=seed), rows
        self.alpha, self.beta = alpha, beta

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        scores = self.scores(batch.inputs)
        new = loss = cross_entropy(scores, batch.targets)
        if len(self.buffer):
            rows = self.rows or len(batch)
            inputs, targets, former = self.buffer.draw(rows)
            counts = targets != IGNORED
            again = self.scores(inputs)[counts]
            loss = loss + self.alpha * F.mse_loss(again, former[counts])
            if self.beta:
                inputs, targets, _ = self.buffer.draw(rows)
                loss = loss + self.beta * cross_entropy(self.scores(inputs), targets)
        self.step(loss, count=batch.count)
        self.buffer.add(batch.inputs, batch.targets, scores.detach())
        return new.item()

    def memory(self) -> dict[str, Any]:
        """The stored examples and scores."""
        return self.buffer.state()

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        self.buffer.load_state(memory)
