"""Learning by reading only: the newest examples are kept, and a softmax memory answers from them.

    M(q) = sum_i softmax_i(q . k_i / tau) e_{y_i}          over the last S examples   (NL Eq. 62-63)

with features of length one as keys and queries and class names as values. That is the
Nadaraya-Watson estimate with a Gaussian kernel, the same read as in attention: what a model with a
context of S examples can do without moving a weight. What leaves the window is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from nestling.continual.protocol import Batch, Cost
from nestling.continual.strategies.closed_form import Features, check_classes, read_features
from nestling.shapes import Float, Tensor


class InContext:
    """A softmax memory of the last labelled examples; nothing else moves.

    Args:
        features: inputs to ``(B, d)``, a module or a function; held.
        width: d.
        classes: how many there can be. One that is not in the window has the score minus infinity.
        window: S, the examples that are kept.
        temperature: tau; small: the nearest example answers, large: the most frequent class.

    Raises:
        ValueError: if a number is not positive.

    >>> learner = InContext(lambda x: x, width=2, classes=3, window=2, temperature=0.1)
    >>> learner.observe(Batch(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2])))
    0.5
    >>> learner.predict(torch.tensor([[3.0, 3.0], [0.0, 5.0]])).exp()
    tensor([[5.0000e-01, 0.0000e+00, 5.0000e-01],
            [4.5398e-05, 0.0000e+00, 9.9995e-01]])
    """

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        window: int,
        temperature: float = 0.05,
    ) -> None:
        for name, value in (("width", width), ("classes", classes), ("window", window)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.features, self.width, self.classes = features, width, classes
        self.window, self.temperature = window, temperature
        self.keys, self.labels = torch.zeros(0, width), torch.zeros(0, dtype=torch.long)
        self._forward = 0

    @property
    def cost(self) -> Cost:
        """Items read, and the bytes of the window."""
        stored = sum(t.numel() * t.element_size() for t in (self.keys, self.labels))
        return Cost(stored_bytes=stored, forward=self._forward)

    def observe(self, batch: Batch) -> float:
        """Read a batch; the share of it that was answered wrongly before.

        Raises:
            ValueError: naming a label that is no class, or features of another shape.
        """
        check_classes(batch.targets, self.classes)
        keys, labels = self.read(batch.inputs), batch.targets.cpu()
        wrong = (self.scores(keys).argmax(1) != labels).double().mean()
        self.keys = torch.cat([self.keys, keys])[-self.window :].clone()
        self.labels = torch.cat([self.labels, labels])[-self.window :].clone()
        self._forward += len(batch)
        return wrong.item()

    def read(self, inputs: Tensor) -> Tensor:
        """Features ``(B, d)`` of length one, in float32 on the processor."""
        return F.normalize(read_features(self.features, inputs, self.width).float(), dim=1)

    def scores(self, queries: Float[Tensor, "B d"]) -> Float[Tensor, "B classes"]:
        """``ln M(q)``: log-probabilities of the classes; zero for all before anything was read."""
        found = queries.new_zeros(len(queries), self.classes)
        if not len(self.labels):
            return found
        shares = (queries @ self.keys.T / self.temperature).log_softmax(1)
        index = self.labels.expand(len(queries), -1)
        # The largest of each class is taken out: a far class has a small share, but not none.
        top = torch.full_like(found, -torch.inf).scatter_reduce(1, index, shares, "amax")
        sums = found.scatter_add(1, index, (shares - top.gather(1, index)).exp())
        return top + sums.log()

    def predict(self, inputs: Tensor) -> Tensor:
        """Log-probabilities ``(B, classes)``; nothing is read into the window."""
        return self.scores(self.read(inputs))

    def end_experience(self, items: Batch) -> None:
        """Nothing: it needs no boundaries."""

    def state(self) -> dict[str, Any]:
        """The window; not copied."""
        return {"keys": self.keys, "labels": self.labels, "forward": self._forward}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``.

        Raises:
            ValueError: naming what differs, if it is of other features or a larger window.
        """
        keys, labels = state["keys"], state["labels"]
        if keys.shape[1:] != (self.width,):
            raise ValueError(f"state: keys: expected width {self.width}, got {keys.shape[1:]}")
        if len(keys) > self.window:
            raise ValueError(f"state: keys: expected at most {self.window}, got {len(keys)}")
        self.keys, self.labels = keys.cpu().clone(), labels.cpu().clone()
        self._forward = int(state["forward"])
