"""Scores turned into losses, by hand; the task enters the measurement and not the learner."""

from __future__ import annotations

import pytest
import torch

from nestling.continual.protocol import IGNORED, Batch, Experience
from nestling.continual.scoring import bits_per_target, error_rate, error_rate_within_task


class Table:
    """A learner that looks its scores up: input i has row i."""

    def __init__(self, scores):
        self.scores = torch.tensor(scores)

    def predict(self, inputs):
        return self.scores[inputs]


def test_error_rate_with_and_without_the_task():
    learner = Table([[3.0, 2.0, 1.0], [3.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    items = Batch(torch.tensor([0, 1, 2]), torch.tensor([1, 2, 2]))
    experience = Experience("two", items, classes=(1, 2))
    # Class 0 has the highest score twice; among 1 and 2 alone every answer is right.
    assert error_rate(learner, experience) == pytest.approx(2 / 3)
    assert error_rate_within_task(learner, experience) == 0.0
    with pytest.raises(ValueError, match="among: expected classes below 3"):
        error_rate(learner, experience, among=[3])
    with pytest.raises(ValueError, match="expected classes, it has none"):
        error_rate_within_task(learner, Experience("none", items))


def test_bits_of_a_uniform_guess_and_targets_that_do_not_count():
    learner = Table([[[0.0] * 8] * 2, [[0.0] * 8] * 2])
    targets = torch.tensor([[1, 2], [3, IGNORED]])
    experience = Experience("text", Batch(torch.tensor([0, 1]), targets))
    assert bits_per_target(learner, experience) == pytest.approx(3.0)
    nothing = Experience("none", Batch(torch.tensor([0]), torch.tensor([[IGNORED, IGNORED]])))
    with pytest.raises(ValueError, match="'none': no target counts"):
        bits_per_target(learner, nothing)
