"""What a stream, a learner and a measurement need to know of one another, and nothing more.

    stream -> Batch -> learner.observe -> loss          learner.predict(inputs) -> scores

No task identity is among it: a learner is given inputs, and targets while it learns. Where a
benchmark tells the task at test time, the *measurement* restricts the scores to that task's
classes (:func:`nestling.continual.scoring.error_rate_within_task`); a learner cannot ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nestling.shapes import Tensor

IGNORED = -100  # torch's mark for a target that does not count


@dataclass(frozen=True)
class Batch:
    """Inputs and targets with the items on the first axis.

    Classification: targets ``(B,)``. Next-token prediction: inputs and targets ``(B, T)``.

    Raises:
        ValueError: if there are not as many targets as inputs.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if self.inputs.ndim == 0 or self.targets.ndim == 0:
            raise ValueError("batch: expected inputs and targets with an axis of items")
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"targets: expected one for each of {len(self.inputs)} inputs, "
                f"got {len(self.targets)}"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def count(self) -> int:
        """Targets that count: examples of a classification, tokens of a text."""
        return int((self.targets != IGNORED).sum())

    def rows(self, index: Tensor | slice) -> Batch:
        """Some of the items."""
        return Batch(self.inputs[index], self.targets[index])


@dataclass(frozen=True)
class Experience:
    """A named part of a stream, and the classes that it introduces (``None``: it has none).

    Raises:
        ValueError: if it is empty, or an item belongs to none of its classes.

    >>> import torch
    >>> Experience("animals", Batch(torch.zeros(2, 3), torch.tensor([4, 5])), classes=(4, 5)).name
    'animals'
    """

    name: str
    items: Batch
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.items):
            raise ValueError(f"experience {self.name!r}: expected at least one item, got none")
        if self.classes is not None:
            strange = sorted(set(self.items.targets.flatten().tolist()) - set(self.classes))
            if strange:
                raise ValueError(
                    f"experience {self.name!r}: label {strange[0]} is not among its classes "
                    f"{list(self.classes)}"
                )


@dataclass(frozen=True)
class Cost:
    """What a strategy has spent, told by itself.

    Attributes:
        stored_bytes: kept beside the model and its optimizer, now: examples, teachers, anchors.
        forward: examples (tokens, for text) that went through the model while learning.
        backward: those of them that were also differentiated.

    >>> Cost(forward=3) + Cost(forward=2, backward=2)
    Cost(stored_bytes=0, forward=5, backward=2)
    """

    stored_bytes: int = 0
    forward: int = 0
    backward: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.stored_bytes + other.stored_bytes,
            self.forward + other.forward,
            self.backward + other.backward,
        )


@runtime_checkable
class Predictor(Protocol):
    """What a measurement needs: scores of inputs, and no way to say where they come from."""

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores ``(B, classes)`` or ``(B, T, vocabulary)``; learns nothing."""
        ...


@runtime_checkable
class Learner(Predictor, Protocol):
    """Anything that learns from batches in the order in which they come."""

    @property
    def cost(self) -> Cost:
        """What it has spent and what it stores."""
        ...

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss *before* learning from it (test, then train)."""
        ...

    def end_experience(self, items: Batch) -> None:
        """Told that an experience is over, with its items; a boundary-free learner ignores it.

        Never called where the stream hides its boundaries.
        """
        ...

    def state(self) -> Mapping[str, Any]:
        """All that goes on, as nested names, numbers and tensors; nothing that needs pickle."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """How good a learner is on an experience, in one number."""

    def __call__(self, learner: Predictor, experience: Experience) -> float:
        """The number; it must leave the learner as it is."""
        ...
