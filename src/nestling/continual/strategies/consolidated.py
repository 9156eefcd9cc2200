"""Consolidated learning: a slow level holds the fast ones to what it knows; nothing is stored.

    L = -ln p_theta(new) + w n KL(p_teacher || p_theta) on text that the teacher wrote

See :mod:`nestling.levels.consolidation`. No boundary is told: a period of the slow level ends by
the clock or by surprise. What answers is the slow level's average. After "Language Models Need
Sleep" (arXiv 2606.03979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn import Parameter

from nestling.continual.protocol import Batch, Cost
from nestling.continual.strategies.base import GradientLearner, cross_entropy, scores_of
from nestling.levels import Consolidation, Level, SlowLevel
from nestling.optim import adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor


class Consolidated(GradientLearner):
    """Next-token prediction with a slow level.

    Args:
        model: a language model that can write text (:func:`nestling.levels.dreams.dream`).
        make: as for every strategy, like ``levels`` and ``clip``.
        consolidation: when and how the slow level learns and holds.
        vocabulary: token ids are below it.
        seed: of the dreams.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        vocabulary: int,
        consolidation: Consolidation | None = None,
        levels: Sequence[tuple[Level, Mapping[str, Parameter]]] | None = None,
        clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, make, levels=levels, clip=clip)
        self.slow = SlowLevel(
            model, consolidation or Consolidation(), vocabulary=vocabulary, seed=seed
        )

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        surprise = loss.item()
        written = self.slow.written
        # Before the step: what a new kind of text would do to the weights is not yet in them.
        self.slow.notice(batch.inputs, surprise)
        held = self.slow.hold(self.model, new=batch.count)
        if held is not None:
            loss = loss + held.loss
            self._spent += Cost(forward=2 * held.tokens, backward=held.tokens)
        self._spent += Cost(forward=self.slow.written - written)
        self.step(loss, count=batch.count)
        self.slow.follow(self.model)
        return surprise

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores of the slow level's average; nothing is learned."""
        return scores_of(self.slow.weights, inputs).detach()

    def memory(self) -> dict[str, Any]:
        """The slow level: average, teacher, dreams."""
        return {"slow": self.slow.state()}

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        self.slow.load_state(memory["slow"])
