"""Random Fourier features: against the kernel, and what a discriminant on them can tell apart."""

from __future__ import annotations

import pytest
import torch

from nestling.continual.protocol import Batch, Experience
from nestling.continual.scoring import error_rate
from nestling.continual.strategies import FourierFeatures, StreamingDiscriminant


def test_inner_products_are_the_kernel():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    z = FourierFeatures(4, 40_000, gamma=0.3, seed=2)(x)
    expected = (-0.3 * torch.cdist(x, x).square()).exp()
    # the standard deviation of a mean of 40,000 products between -2 and 2 is at most 0.007
    torch.testing.assert_close(z @ z.T, expected, atol=0.03, rtol=0)


def test_a_ring_around_a_point():
    """No line separates them; a discriminant with the kernel does."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    x = torch.nn.functional.normalize(torch.randn(400, 2, generator=generator), dim=1)
    x = x * (1 + 2 * labels[:, None]) + 0.2 * torch.randn(400, 2, generator=generator)
    batch = Batch(x, labels)
    plain = StreamingDiscriminant(lambda x: x, 2, 2)
    kernel = StreamingDiscriminant(FourierFeatures(2, 60, gamma=0.5), 60, 2)
    for learner in (plain, kernel):
        learner.observe(batch)
    assert error_rate(plain, Experience("ring", batch)) > 0.3
    assert error_rate(kernel, Experience("ring", batch)) < 0.02


@pytest.mark.parametrize(
    ("argument", "inputs", "outputs", "gamma"),
    [("inputs", 0, 3, 1.0), ("outputs", 2, 0, 1.0), ("gamma", 2, 3, 0.0)],
)
def test_bad_argument(argument, inputs, outputs, gamma):
    with pytest.raises(ValueError, match=argument):
        FourierFeatures(inputs, outputs, gamma=gamma)
