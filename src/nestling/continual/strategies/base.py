"""What every strategy that moves weights shares: scores, one step, what it cost, its state.

    theta^(l) <- theta^(l) - f_l(gradient of L)            every level l at its own period

A strategy is one ``observe``: which loss L it makes of a batch. Everything here is the same for all
of them, so two strategies differ in their idea and in nothing else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Parameter

from nestling.continual.protocol import IGNORED, Batch, Cost
from nestling.levels import Level
from nestling.models.by_level import by_level
from nestling.optim import LevelwiseOptimizer, adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor


class GradientLearner(ABC):
    """A model that is moved by the gradient of a loss; a subclass says which loss.

    Args:
        model: inputs to scores, ``(B, classes)`` or ``(B, T, vocabulary)``; models of this library
            and of transformers as they are.
        make: builds the optimizer of one level from its named parameters.
        levels: parameters that move together, and how often (in targets seen); ``None``: as the
            model says, every step where it says nothing.
        clip: largest norm of the gradients that move together; ``None``: no limit.
        keep_moments: whether the optimizer's memory lives on when an experience ends. Only a
            stream with boundaries can make a difference here.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        levels: Sequence[tuple[Level, Mapping[str, Parameter]]] | None = None,
        clip: float | None = 1.0,
        keep_moments: bool = True,
    ) -> None:
        self.model, self.keep_moments = model, keep_moments
        self._make, self._levels, self._clip = make, levels, clip
        self._spent = Cost()
        self.optimizer = self._new_optimizer()

    @abstractmethod
    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats: what makes a strategy."""

    @property
    def cost(self) -> Cost:
        """What it has spent, and what it stores beside model and optimizer."""
        return self._spent + Cost(stored_bytes=self.stored_bytes())

    def stored_bytes(self) -> int:
        """Examples, teachers, anchors that it keeps now."""
        return sum(t.numel() * t.element_size() for t in _tensors(self.memory()))

    def scores(self, inputs: Tensor, *, graded: bool = True) -> Tensor:
        """Scores of inputs while learning: they are counted in :attr:`cost`."""
        with torch.set_grad_enabled(graded):
            found = scores_of(self.model, inputs)
        places = found.shape[:-1].numel()
        self._spent += Cost(forward=places, backward=places if graded else 0)
        return found

    def step(self, loss: Tensor, *, count: int) -> None:
        """Move the levels whose period is over; ``count`` targets have been seen."""
        loss.backward()
        self.optimizer.step(tokens=max(count, 1))

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores of inputs; nothing is learned."""
        with torch.no_grad():
            return scores_of(self.model, inputs)

    def end_experience(self, items: Batch) -> None:
        """Told that an experience is over."""
        if not self.keep_moments:
            self.optimizer = self._new_optimizer()

    def memory(self) -> dict[str, Any]:
        """What a strategy keeps beside model and optimizer; a subclass with any overrides both."""
        return {}

    def load_memory(self, memory: Mapping[str, Any]) -> None:  # noqa: B027
        """Take what :meth:`memory` gave."""

    def state(self) -> dict[str, Any]:
        """All that goes on; not copied."""
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "spent": [self._spent.forward, self._spent.backward],
            "memory": self.memory(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``.

        Raises:
            ValueError: naming what differs, if it belongs to another model or optimizer.
        """
        own, given = set(self.model.state_dict()), set(state["model"])
        if own != given:
            raise ValueError(f"state: it is of another model: {sorted(own ^ given)[0]!r} differs")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        forward, backward = state["spent"]
        self._spent = Cost(forward=forward, backward=backward)
        self.load_memory(state["memory"])

    def _new_optimizer(self) -> LevelwiseOptimizer:
        for parameter in self.model.parameters():
            parameter.grad = None
        levels = by_level(self.model) if self._levels is None else self._levels
        return LevelwiseOptimizer(levels, self._make, clip=self._clip)


def scores_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The scores in what a model returns: a tensor, a tuple that begins with it, or ``.logits``.

    Raises:
        ValueError: if it returns something else.

    >>> scores_of(nn.Linear(2, 3), torch.zeros(5, 2)).shape
    torch.Size([5, 3])
    """
    found = model(inputs)
    if isinstance(found, tuple):
        found = found[0]
    found = getattr(found, "logits", found)
    if not isinstance(found, Tensor):
        raise ValueError(f"model: expected scores, got {type(found).__name__}")
    return found


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-ln p(target)`` in nats, over the targets that count.

    >>> cross_entropy(torch.zeros(2, 3, 4), torch.tensor([[1, 2, 0], [3, -100, 0]]))
    tensor(1.3863)
    """
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        # The state of a random generator is no knowledge: it would be most of a small buffer.
        value = [kept for name, kept in value.items() if name != "generator"]
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []
