"""Experience replay: learn what comes together with some of what was.

    L = -ln p(y | x) + w (-ln p(y' | x')),      (x', y') from a reservoir of everything seen

Rolnick et al. 2019; Chaudhry et al. 2019 ("tiny episodic memories").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nestling.continual.protocol import Batch
from nestling.continual.strategies.base import GradientLearner, cross_entropy
from nestling.continual.strategies.reservoir import Reservoir
from nestling.optim import adamw
from nestling.optim.levelwise import Make


class Replay(GradientLearner):
    """Plain training on new batches and on stored examples.

    Args:
        model: as for every strategy, like ``make`` and ``**options``.
        capacity: examples that are stored.
        rows: stored examples learned with every batch; ``None``: as many as are new.
        weight: w of their loss.
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
        weight: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"rows: expected at least 1, got {rows}")
        if not weight > 0:
            raise ValueError(f"weight: expected a positive number, got {weight}")
        super().__init__(model, make, **options)
        self.buffer, self.rows, self.weight = Reservoir(capacity, seed=seed), rows, weight

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        new = loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        if len(self.buffer):
            inputs, targets = self.buffer.draw(self.rows or len(batch))
            loss = loss + self.weight * cross_entropy(self.scores(inputs), targets)
        self.step(loss, count=batch.count)
        self.buffer.add(batch.inputs, batch.targets)
        return new.item()

    def memory(self) -> dict[str, Any]:
        """The stored examples."""
        return self.buffer.state()

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        self.buffer.load_state(memory)
