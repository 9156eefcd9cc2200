"""Several slow levels behind each other: each follows the one before it, and all hold the fast one.

    slow_1   <- b_1 slow_1 + (1 - b_1) theta          slow_l <- b_l slow_l + (1 - b_l) slow_(l-1)
    L        =  -ln p_theta(new)  +  sum over l of  w_l n_l KL(teacher_l || theta)  on its dreams

Every level is one :class:`nestling.levels.SlowLevel`: an average, a teacher that is held for the
level's own period, and the teacher's dreams. A slower level speaks for what is longer ago: it was
taken before what the faster ones have already passed on, and lost a part of. With one level it is
:class:`Consolidated`. What answers is the fastest average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import Parameter

from nestling.continual.protocol import Batch, Cost
from nestling.continual.strategies.base import GradientLearner, cross_entropy, scores_of
from nestling.levels import Consolidation, Level, SlowLevel
from nestling.optim import adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor


def slower(fastest: Consolidation, levels: int, *, factor: int) -> list[Consolidation]:
    """Levels whose periods and averaging times grow; together they rehearse and weigh as one.

        period_l = factor^(l-1) period,     1 - b_l = (1 - b) / factor^(l-1)

    Args:
        fastest: of the first level, if it were alone.
        levels: how many.
        factor: from one level to the next.

    Raises:
        ValueError: if ``fastest`` has no period, or a number is out of range.

    >>> chain = slower(Consolidation(period=100, average=0.75, rehearsal=0.5), 2, factor=2)
    >>> [(level.period, level.average, level.rehearsal) for level in chain]
    [(100, 0.75, 0.25), (200, 0.875, 0.25)]
    """
    if fastest.period is None:
        raise ValueError("fastest: expected a period, by which the slower ones are known")
    for name, value, least in (("levels", levels, 1), ("factor", factor, 2)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    return [
        replace(
            fastest,
            period=fastest.period * factor**place,
            average=1 - (1 - fastest.average) / factor**place if fastest.average else 0.0,
            rehearsal=fastest.rehearsal / levels,
            weight=fastest.weight / levels,
        )
        for place in range(levels)
    ]


class Chained(GradientLearner):
    """Next-token prediction with a chain of slow levels.

    Args:
        model: a language model that can write text (:func:`nestling.levels.dreams.dream`).
        make: as for every strategy, like ``levels`` and ``clip``.
        chain: when and how each slow level learns and holds, the fastest first.
        vocabulary: token ids are below it.
        seed: of the dreams.

    Raises:
        ValueError: if there is no slow level.

    >>> import torch
    >>> from nestling.models import build
    >>> chain = slower(Consolidation(surprise=None, period=8, dreams=2, length=8), 2, factor=2)
    >>> learner = Chained(build("transformer", width=16, heads=2, layers=1), chain=chain,
    ...                   vocabulary=256)
    >>> batch = Batch(torch.arange(8)[None], torch.arange(1, 9)[None])
    >>> losses = [learner.observe(batch) for _ in range(4)]
    >>> [level.dreams is not None for level in learner.slow]
    [True, True]
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        vocabulary: int,
        chain: Sequence[Consolidation],
        levels: Sequence[tuple[Level, Mapping[str, Parameter]]] | None = None,
        clip: float | None = 1.0,
        seed: int = 0,
    ) -> None:
        if not chain:
            raise ValueError("chain: expected at least one slow level, got none")
        super().__init__(model, make, levels=levels, clip=clip)
        self.slow = [
            SlowLevel(model, level, vocabulary=vocabulary, seed=seed + place)
            for place, level in enumerate(chain)
        ]

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        surprise = loss.item()
        for level in self.slow:
            written = level.written
            level.notice(batch.inputs, surprise)
            held = level.hold(self.model, new=batch.count)
            if held is not None:
                loss = loss + held.loss
                self._spent += Cost(forward=2 * held.tokens, backward=held.tokens)
            self._spent += Cost(forward=level.written - written)
        self.step(loss, count=batch.count)
        followed = self.model
        for level in self.slow:
            level.follow(followed)
            followed = level.weights
        return surprise

    @property
    def answering(self) -> nn.Module:
        """The fastest average."""
        return self.slow[0].weights

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores of the fastest average; nothing is learned."""
        return scores_of(self.answering, inputs).detach()

    def memory(self) -> dict[str, Any]:
        """Every slow level: average, teacher, dreams."""
        return {"slow": [level.state() for level in self.slow]}

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave.

        Raises:
            ValueError: if it is of another number of levels.
        """
        if len(memory["slow"]) != len(self.slow):
            raise ValueError(
                f"state: expected {len(self.slow)} slow levels, got {len(memory['slow'])}"
            )
        for level, state in zip(self.slow, memory["slow"], strict=True):
            level.load_state(state)
