"""A discriminant of two levels: a class varies in its own way, and begins as all classes vary.

    slow:    S_r      the shrunk covariance that all classes share; every item moves it
    fast:    B_c      (rank, d), B_c^T B_c ~ sum of (x - m_c) (x - m_c)^T; items of class c move it
    S_c      = (1 - k) S_r + k B_c^T B_c / n_c
    score_c  = -1/2 (x - m_c) S_c^-1 (x - m_c)^T - 1/2 ln |S_c| + ln n_c / N

In the terms of this library each class is a memory of its own, whose initial state is given by the
next slower level. With ``k = 0`` it is :class:`StreamingDiscriminant`; with a full rank it is
quadratic discriminant analysis, shrunk towards the linear one (Friedman 1989). ``B_c`` is the
incremental singular value decomposition of the class (Ross et al. 2008), which forgets what is
smallest: a class costs ``rank + 1`` vectors however many of its items have come. Of these the
score needs one more matrix:

    score_c  = x w_c + b_c + 1/2 sum_j (x q_cj + o_cj)^2,      q_c = S_r^-1 B_c^T turned, scaled
"""

from __future__ import annotations

import torch

from nestling.continual.strategies.closed_form import Features
from nestling.continual.strategies.discriminant import StreamingDiscriminant
from nestling.shapes import Tensor


class NestedDiscriminant(StreamingDiscriminant):
    """Linear discriminant analysis with a small covariance for each class, from a stream.

    Args:
        features: inputs to ``(B, d)``; held.
        width: d.
        classes: how many there can be.
        rank: vectors in which a class keeps how it varies.
        own: k, the share of a class's own covariance, below 1.
        shrinkage: of the shared covariance towards the sphere, between 0 and 1.
        period: items between two solves for the loss of :meth:`observe`.

    Raises:
        ValueError: if a number is out of range.

    >>> from nestling.continual.protocol import Batch
    >>> learner = NestedDiscriminant(lambda x: x, width=2, classes=2, rank=1, own=0.9)
    >>> points = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -9.0], [0.0, 9.0]])
    >>> learner.observe(Batch(points, torch.tensor([0, 0, 1, 1])))      # two means in one place
    0.5
    >>> learner.predict(torch.tensor([[2.0, 0.0], [0.0, 2.0]])).argmax(1)
    tensor([0, 1])
    """

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        rank: int = 8,
        own: float = 0.2,
        shrinkage: float = 1e-2,
        period: int = 1,
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        if not 0 <= own < 1:
            raise ValueError(f"own: expected 0 <= own < 1, got {own}")
        self.rank, self.own = rank, own
        super().__init__(features, width, classes, shrinkage=shrinkage, period=period)

    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what is summed up, by name, and of what is kept of each class."""
        return {**super().statistics(), "directions": (self.classes, self.rank, self.width)}

    @property
    def directions(self) -> Tensor:
        """``B_c`` of each class, ``(classes, rank, d)``, the largest first."""
        return self._sums["directions"]

    def write(self, x: Tensor, labels: Tensor) -> None:
        """Add ``(B, d)`` features and their classes."""
        for label in labels.unique().tolist():
            self.directions[label] = self._joined(label, x[labels == label])
        super().write(x, labels)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Readout ``(d, classes (1 + rank))``: of the means, then of each class's directions."""
        factor, means, kept = self.factor(), self.means, 1 - self.own
        count = self.counts.clamp_min(1)
        B = self.directions
        Q = torch.cholesky_solve(B.flatten(0, 1).T, factor).T.view_as(B)
        # Turned so that the directions of a class are orthogonal in the metric of S_r; the
        # eigenvalues are the variances along them as shares of the shared ones.
        values, turn = torch.linalg.eigh(B @ Q.mT * (self.own / count)[:, None, None])
        values = values.clamp_min(0)
        scale = (self.own / count[:, None] / (kept * (kept + values))).sqrt()
        Q = scale[:, :, None] * (turn.mT @ Q)
        weight = torch.cholesky_solve(means.T, factor) / kept
        offset = (count / self.counts.sum()).log() - (means.T * weight).sum(0) / 2
        offset = offset - (values / kept).log1p().sum(1) / 2
        return (
            torch.cat([weight, Q.flatten(0, 1).T], 1),
            torch.cat([offset, -(Q @ means[:, :, None]).flatten()]),
        )

    def _joined(self, label: int, rows: Tensor) -> Tensor:
        """What is kept of a class after ``(N, d)`` more items of it.

        The scatter around the new mean is that of the old items, that of the new ones, and that
        of their two means.
        """
        old, new = float(self.counts[label]), len(rows)
        mean = rows.mean(0)
        apart = (old * new / (old + new)) ** 0.5 * (self.means[label] - mean)
        stacked = torch.cat([self.directions[label], rows - mean, apart[None]])
        _, turn = torch.linalg.eigh(stacked @ stacked.T)
        return turn.flip(1)[:, : self.rank].T @ stacked

    def _blank(self) -> tuple[Tensor, Tensor]:
        columns = self.classes * (1 + self.rank)
        return (torch.zeros(self.width, columns, dtype=torch.float64),
                torch.zeros(columns, dtype=torch.float64))  # fmt: skip

    def _scores(self, x: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        linear, squared = weight.split([self.classes, weight.shape[1] - self.classes], 1)
        first, rest = offset.split([self.classes, len(offset) - self.classes])
        scores = super()._scores(x, linear, first)
        return (
            scores + (x @ squared + rest).view(len(x), self.classes, self.rank).square().sum(2) / 2
        )
