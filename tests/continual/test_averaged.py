"""Averaged: by hand, beside any strategy, and as the slow level's own average."""

from __future__ import annotations

import pytest
import torch

from nestling.continual.protocol import Batch, Learner
from nestling.continual.strategies import Averaged, Replay, Sequential
from nestling.levels import RunningAverage


def sgd(named):
    return torch.optim.SGD(named.values(), lr=0.5)


def batches(count: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(torch.randn(6, 3, generator=generator), torch.randint(2, (6,), generator=generator))
        for _ in range(count)
    ]


def new(capacity: int | None = None) -> Averaged:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    learner = Sequential(model, sgd) if capacity is None else Replay(model, sgd, capacity=capacity)
    return Averaged(learner, kept=0.8)


def test_by_hand():
    learner, plain = new(), Sequential(new().learner.model, sgd)
    slow = plain.model.weight.detach().clone()
    for step, batch in enumerate(batches(60), start=1):
        assert learner.observe(batch) == plain.observe(batch)
        kept = min(0.8, (1 + step) / (10 + step))
        slow = kept * slow + (1 - kept) * plain.model.weight.detach()
    torch.testing.assert_close(learner.average.model.weight.data, slow)
    assert not torch.equal(learner.average.model.weight, learner.learner.model.weight)
    inputs = batches(1)[0].inputs
    torch.testing.assert_close(learner.predict(inputs), learner.average.model(inputs).detach())


def test_is_a_learner_and_goes_on():
    whole, first, second = new(4), new(4), new(4)
    assert isinstance(whole, Learner)
    for batch in batches(9):
        whole.observe(batch)
    for batch in batches(9)[:5]:
        first.observe(batch)
    second.load_state(first.state())
    for batch in batches(9)[5:]:
        second.observe(batch)
    inputs = batches(1)[0].inputs
    assert torch.equal(whole.predict(inputs), second.predict(inputs))
    assert whole.cost == second.cost
    assert whole.cost.stored_bytes == 4 * (3 * 4 + 8) + 4 * (6 + 2)  # examples, one more copy


def test_keeps_nothing_at_zero():
    model = torch.nn.Linear(2, 1)
    average = RunningAverage(model, kept=0.0)
    torch.nn.init.ones_(model.weight)
    average.follow(model)
    assert torch.equal(average.model.weight, model.weight)


def test_bad_argument():
    with pytest.raises(ValueError, match=r"kept: expected 0 <= kept < 1, got 1\.0"):
        RunningAverage(torch.nn.Linear(1, 1), kept=1.0)
