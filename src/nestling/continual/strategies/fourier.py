"""Random Fourier features: an inner product that is a Gaussian kernel.

    z(x) = sqrt(2 / m) cos(x P + b),   P ~ N(0, 2 g), b ~ U(0, 2 pi):   z(x) z(y)^T ~ e^{-g |x-y|^2}

Rahimi and Recht 2007. Linear discriminant analysis on them is kernel discriminant analysis, learned
from a stream (KLDA, Momeni et al. 2025).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from nestling.shapes import Tensor


class FourierFeatures(nn.Module):
    """``(B, inputs)`` to ``(B, outputs)``; never moved.

    Args:
        inputs: width of x.
        outputs: m.
        gamma: g of the kernel.
        seed: of P and b.

    Raises:
        ValueError: if a number is not positive.

    >>> z = FourierFeatures(2, 5000, gamma=0.5)(torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
    >>> print(f"{float(z[0] @ z[1]):.1f} = e^-1")
    0.4 = e^-1
    """

    def __init__(self, inputs: int, outputs: int, *, gamma: float, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("outputs", outputs), ("gamma", gamma)):
            if not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(inputs, outputs, generator=generator) * math.sqrt(2 * gamma)
        self.projection: Tensor
        self.shift: Tensor
        self.register_buffer("projection", drawn)
        self.register_buffer("shift", torch.rand(outputs, generator=generator) * 2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        return torch.cos(x @ self.projection + self.shift) * math.sqrt(2 / len(self.shift))
