"""Nearest class mean: the prototype of each class is the mean of its features.

    score_c(x) = <x, m_c> / |m_c|  (cosine, default)      or      2 <x, m_c> - |m_c|^2  (Euclidean)

The nearest in angle, or the nearest point: ``-|x - m_c|^2`` up to what all classes share (Mensink
et al. 2013; iCaRL's rule without its examples).
"""

from __future__ import annotations

from typing import Literal

import torch

from nestling.continual.strategies.closed_form import ClosedFormLearner, Features
from nestling.shapes import Tensor


class ClassMeans(ClosedFormLearner):
    """One mean for each class, and the nearest one answers.

    Args:
        features: inputs to ``(B, d)``; held.
        width: d.
        classes: how many there can be.
        distance: ``"cosine"`` or ``"euclidean"``.
        period: as for all of this kind; here solving costs next to nothing.

    Raises:
        ValueError: if a number is not positive, or the distance is another word.

    >>> from nestling.continual.protocol import Batch
    >>> learner = ClassMeans(lambda x: x, width=2, classes=3)
    >>> learner.observe(Batch(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2])))
    0.5
    >>> learner.predict(torch.tensor([[3.0, 4.0]]))
    tensor([[3., -inf, 4.]], dtype=torch.float64)
    """

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        distance: Literal["cosine", "euclidean"] = "cosine",
        period: int = 1,
    ) -> None:
        if distance not in ("cosine", "euclidean"):
            raise ValueError(f"distance: expected 'cosine' or 'euclidean', got {distance!r}")
        super().__init__(features, width, classes, period=period)
        self.distance = distance

    def solve(self) -> tuple[Tensor, Tensor]:
        """The means, at length one for the cosine."""
        if self.distance == "cosine":
            return torch.nn.functional.normalize(self.means, dim=1).T, torch.zeros_like(self.counts)
        return 2 * self.means.T, -self.means.square().sum(1)
