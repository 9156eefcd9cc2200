"""Averaged: any strategy, answered by the running average of its weights.

    slow <- b slow + (1 - b) theta after each step of the strategy;    answers are those of slow

What averaging alone is worth, beside strategies that hold the weights as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestling.continual.protocol import Batch, Cost
from nestling.continual.strategies.base import GradientLearner, scores_of
from nestling.levels import RunningAverage
from nestling.shapes import Tensor


class Averaged:
    """A learner and the average of its model.

    Args:
        learner: learns as it always does.
        kept: b, the share of the average that a step leaves as it is.

    >>> import torch
    >>> from nestling.continual.strategies.sequential import Sequential
    >>> learner = Averaged(Sequential(torch.nn.Linear(1, 2)), kept=0.5)
    >>> loss = learner.observe(Batch(torch.ones(4, 1), torch.ones(4, dtype=torch.long)))
    >>> learner.cost
    Cost(stored_bytes=16, forward=4, backward=4)
    """

    def __init__(self, learner: GradientLearner, *, kept: float = 0.98) -> None:
        self.learner = learner
        self.average = RunningAverage(learner.model, kept=kept)

    @property
    def cost(self) -> Cost:
        """That of the learner, and one more copy of the weights."""
        weights = self.average.model.state_dict().values()
        return self.learner.cost + Cost(
            stored_bytes=sum(w.numel() * w.element_size() for w in weights)
        )

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats, of the weights that move."""
        loss = self.learner.observe(batch)
        self.average.follow(self.learner.model)
        return loss

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores of the average; nothing is learned."""
        return scores_of(self.average.model, inputs).detach()

    def end_experience(self, items: Batch) -> None:
        """Told that an experience is over."""
        self.learner.end_experience(items)

    def state(self) -> dict[str, Any]:
        """Learner and average; not copied."""
        return {"learner": self.learner.state(), "average": self.average.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``."""
        self.learner.load_state(state["learner"])
        self.average.load_state(state["average"])
