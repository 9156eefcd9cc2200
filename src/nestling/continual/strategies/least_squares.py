"""Least squares on held features: an L2 associative memory that is solved exactly.

    W = argmin  sum_i |W^T x_i - e_{y_i}|^2 + l |W|^2   =  (G + l I)^-1 sum_i x_i e_{y_i}^T

The objective is that of an L2 memory (:mod:`nestling.memory`), with class names as values; where
gradient steps forget, the minimiser over all that was ever written is a function of two sums. On
random features ``relu(x P)`` it is RanPAC (McDonnell et al. 2023). ``l`` is a share of the mean
squared feature, so that it needs no tuning to the scale or the length of a stream.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from nestling.continual.strategies.closed_form import Features, SecondMoments, regularised
from nestling.shapes import Tensor


class RandomFeatures(nn.Module):
    """``relu(x P)`` with a random P that never moves: what is not separable becomes so.

    Args:
        inputs: width of x.
        outputs: random features.
        seed: of P, whose entries have variance ``1 / inputs``.

    Raises:
        ValueError: if a width is not positive.

    >>> RandomFeatures(3, 5, seed=0)(torch.ones(2, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(self, inputs: int, outputs: int, *, seed: int = 0) -> None:
        super().__init__()
        if inputs < 1 or outputs < 1:
            raise ValueError(f"inputs, outputs: expected at least 1, got {inputs}, {outputs}")
        drawn = torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(seed))
        self.projection: Tensor
        self.register_buffer("projection", drawn / math.sqrt(inputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        return torch.relu(x @ self.projection)


class LeastSquares(SecondMoments):
    """Ridge regression onto class names, learned from a stream.

    Args:
        features: inputs to ``(B, d)``; held. See :class:`RandomFeatures`.
        width: d.
        classes: how many there can be.
        ridge: l as a share of the mean of the diagonal of G, above 0.
        period: items between two solves for the loss of :meth:`observe`.

    Raises:
        ValueError: if a number is out of range.

    >>> from nestling.continual.protocol import Batch
    >>> learner = LeastSquares(lambda x: x, width=2, classes=2, ridge=1e-9)
    >>> learner.observe(Batch(torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0, 1])))
    0.5
    >>> learner.predict(torch.tensor([[1.0, 1.0]])).round(decimals=3)
    tensor([[0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        features: Features,
        width: int,
        classes: int,
        *,
        ridge: float = 1e-3,
        period: int = 1,
    ) -> None:
        if not (ridge > 0 and math.isfinite(ridge)):
            raise ValueError(f"ridge: expected a positive number, got {ridge}")
        super().__init__(features, width, classes, period=period)
        self.ridge = ridge

    def solve(self) -> tuple[Tensor, Tensor]:
        """The minimiser; its offset is nothing (give a constant feature to have one)."""
        products = self._sums["products"]
        spread = products.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
        factor = regularised(products, self.ridge * spread)
        return torch.cholesky_solve(self._sums["sums"].T, factor), torch.zeros_like(self.counts)
