"""Streaming linear discriminant analysis: class means, and one covariance that all classes share.

    S        = 1/N sum_i (x_i - m_{y_i}) (x_i - m_{y_i})^T  =  (G - sum_c n_c m_c m_c^T) / N
    S_r      = (1 - r) S + r tr(S)/d I
    score_c  = x S_r^-1 m_c - 1/2 m_c S_r^-1 m_c + ln n_c / N

Exactly ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=r)`` of scikit-learn on everything
seen so far, from sums alone: no example is kept, and the order of the stream makes no difference.
With a frozen encoder it is the core of InCA (Momeni et al. 2025) and of deep SLDA (Hayes and Kanan
2020).
"""

from __future__ import annotations

import torch

from nestling.continual.strategies.closed_form import Features, SecondMoments, regularised
from nestling.shapes import Tensor


class StreamingDiscriminant(SecondMoments):
    """Linear discriminant analysis, learned from a stream.

    Args:
        features: inputs to ``(B, d)``; held.
        width: d.
        classes: how many there can be.
        shrinkage: r, between 0 and 1.
        period: items between two solves for the loss of :meth:`observe`.

    Raises:
        ValueError: if a number is out of range.

    >>> from nestling.continual.protocol import Batch
    >>> learner = StreamingDiscriminant(lambda x: x, width=2, classes=2)
    >>> batch = Batch(torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 0.0], [9.0, 2.0]]),
    ...               torch.tensor([0, 0, 1, 1]))
    >>> learner.observe(batch)
    0.5
    >>> learner.predict(torch.tensor([[5.0, 50.0]])).argmax(1)
    tensor([1])
    """

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        shrinkage: float = 1e-3,
        period: int = 1,
    ) -> None:
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage: expected a number between 0 and 1, got {shrinkage}")
        super().__init__(features, width, classes, period=period)
        self.shrinkage = shrinkage

    def solve(self) -> tuple[Tensor, Tensor]:
        """Means in the metric of the shrunk covariance, and the offsets."""
        means = self.means
        weight = torch.cholesky_solve(means.T, self.factor())
        prior = (self.counts.clamp_min(1) / self.counts.sum()).log()
        return weight, prior - (means.T * weight).sum(0) / 2

    def factor(self) -> Tensor:
        """Cholesky factor ``(d, d)`` of the shrunk covariance."""
        shared = self.within()
        spread = shared.diagonal().mean()
        if not spread > 0:  # one item of each class: nothing is known of how they vary
            shared, spread = torch.eye(self.width, dtype=shared.dtype), spread.new_ones(())
        return regularised((1 - self.shrinkage) * shared, self.shrinkage * spread)
