"""What strategies without a gradient share: statistics of features, and a readout solved from them.

    write:   n_c += 1,   s_c += x,   G += x x^T       for every item x = features(input) of class c
    solve:   W, b = a function of (n, s, G)             scores = x W + b

The statistics are sums: they lose nothing, whatever comes later, and do not depend on the order of
the stream (to rounding; they are kept in float64). In the terms of this library each is an
associative memory of period 1, written by the dot product, and the readout is its exact minimiser.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nestling.continual.protocol import Batch, Cost
from nestling.shapes import Tensor

Features = Callable[[Tensor], Tensor]
"""Inputs to ``(B, d)``; held for ever, so what is summed up stays comparable."""


def check_classes(targets: Tensor, classes: int) -> None:
    """Make sure that targets are classes.

    Raises:
        ValueError: naming the first that is none.
    """
    strange = targets[(targets < 0) | (targets >= classes)]
    if len(strange):
        raise ValueError(f"targets: expected classes below {classes}, got {int(strange[0])}")


@torch.no_grad()
def read_features(features: Features, inputs: Tensor, width: int) -> Tensor:
    """Features ``(B, width)`` on the processor.

    Raises:
        ValueError: if they have another shape.
    """
    x = features(inputs)
    if x.shape != (len(inputs), width):
        raise ValueError(f"features: expected shape {(len(inputs), width)}, got {tuple(x.shape)}")
    return x.detach().cpu()


class ClosedFormLearner(ABC):
    """Sums of features by class, and a linear readout solved from them.

    Args:
        features: inputs to ``(B, d)``; a module or a function. It is never moved.
        width: d.
        classes: how many there can be. One that has not come yet has the score minus infinity.
        period: items between two solves for the loss that :meth:`observe` tells. The larger, the
            cheaper and the older the readout behind that number; what is learned and
            :meth:`predict` do not depend on it.

    Raises:
        ValueError: if a number is not positive.
    """

    def __init__(self, features: Features, width: int, classes: int, *, period: int = 1) -> None:
        for name, value in (("width", width), ("classes", classes), ("period", period)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.features, self.width, self.classes, self.period = features, width, classes, period
        self._sums = {name: torch.zeros(shape, dtype=torch.float64)
                      for name, shape in self.statistics().items()}  # fmt: skip
        self._held = self._blank()
        self._solved: tuple[Tensor, Tensor] | None = None
        self._solved_at, self._forward = 0, 0

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """Readout ``(d, classes)`` and offset ``(classes,)`` of the statistics, float64.

        Columns of classes that have not come may hold anything finite.
        """

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is summed up, by name."""
        return {"counts": (self.classes,), "sums": (self.classes, self.width)}

    @property
    def counts(self) -> Tensor:
        """Items of each class so far, ``(classes,)``."""
        return self._sums["counts"]

    @property
    def means(self) -> Tensor:
        """Mean features of each class, ``(classes, d)``; zero for one that has not come."""
        return self._sums["sums"] / self.counts.clamp_min(1)[:, None]

    @property
    def cost(self) -> Cost:
        """Items read, and the bytes of the statistics."""
        stored = sum(t.numel() * t.element_size() for t in self._sums.values())
        return Cost(stored_bytes=stored, forward=self._forward)

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; the share of it that was answered wrongly before.

        Raises:
            ValueError: naming a label that is no class, or features of another shape.
        """
        check_classes(batch.targets, self.classes)
        seen = int(self.counts.sum())
        if seen // self.period > self._solved_at // self.period:
            self._held, self._solved_at = self.readout(), seen
        x, labels = self.read(batch.inputs), batch.targets.cpu()
        wrong = (self._scores(x, *self._held).argmax(1) != labels).double().mean()
        self.write(x, labels)
        self._solved = None
        self._forward += len(batch)
        return wrong.item()

    def write(self, x: Tensor, labels: Tensor) -> None:
        """Add ``(B, d)`` features and their classes to the statistics."""
        self._sums["counts"] += torch.bincount(labels, minlength=self.classes)
        self._sums["sums"].index_add_(0, labels, x)

    def read(self, inputs: Tensor) -> Tensor:
        """Features ``(B, d)`` in float64 on the processor."""
        return read_features(self.features, inputs, self.width).double()

    def readout(self) -> tuple[Tensor, Tensor]:
        """The solution for all that was seen until now, computed once."""
        if self._solved is None:
            self._solved = self.solve() if bool(self.counts.any()) else self._blank()
        return self._solved

    def predict(self, inputs: Tensor) -> Tensor:
        """Scores ``(B, classes)`` of the exact readout; zeros before anything was learned."""
        x = self.read(inputs)
        return self._scores(x, *self.readout()).to(inputs.device)

    def end_experience(self, items: Batch) -> None:  # noqa: B027
        """Nothing: sums know no boundaries."""

    def state(self) -> dict[str, Any]:
        """Statistics, and the readout behind the loss of the next batch; not copied."""
        weight, offset = self._held
        return {**self._sums, "weight": weight, "offset": offset,
                "solved_at": self._solved_at, "forward": self._forward}  # fmt: skip

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``.

        Raises:
            ValueError: naming what differs, if it is of other features or classes.
        """
        for name, own in [*self._sums.items(), *zip(("weight", "offset"), self._held, strict=True)]:
            given = state[name].shape if name in state else None
            if given != own.shape:
                raise ValueError(
                    f"state: {name}: expected shape {tuple(own.shape)}, "
                    f"got {None if given is None else tuple(given)}"
                )
        self._sums = {name: state[name].clone() for name in self._sums}
        self._held = state["weight"].clone(), state["offset"].clone()
        self._solved_at, self._forward = int(state["solved_at"]), int(state["forward"])
        self._solved = None

    def _blank(self) -> tuple[Tensor, Tensor]:
        return (torch.zeros(self.width, self.classes, dtype=torch.float64),
                torch.zeros(self.classes, dtype=torch.float64))  # fmt: skip

    def _scores(self, x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        scores = x @ weight + offset
        if not bool(self.counts.any()):
            return scores
        return scores.masked_fill(self.counts == 0, -torch.inf)


class SecondMoments(ClosedFormLearner):
    """The same with the sum of outer products, for readouts that know how features vary."""

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is summed up, by name."""
        return {**super().statistics(), "products": (self.width, self.width)}

    def write(self, x: Tensor, labels: Tensor) -> None:
        """Add ``(B, d)`` features and their classes to the statistics."""
        super().write(x, labels)
        self._sums["products"].addmm_(x.T, x)

    def within(self) -> Tensor:
        """Covariance around the class means, ``(d, d)``, divided by the number of items."""
        sums, means = self._sums["sums"], self.means
        return (self._sums["products"] - means.T @ sums) / self.counts.sum()


def regularised(matrix: Tensor, ridge: Tensor | float) -> Tensor:
    """Cholesky factor of ``matrix + ridge I``.

    Raises:
        ValueError: if that is not positive definite in float64; it says which ridge was too small.

    >>> regularised(torch.zeros(2, 2), 4.0)
    tensor([[2., 0.],
            [0., 2.]])
    """
    shifted = matrix.clone()
    shifted.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if int(info):
        raise ValueError(
            f"ridge: {float(ridge):.3g} is too small for features of which some are constant or "
            "the sum of others; choose a larger one"
        )
    return factor
