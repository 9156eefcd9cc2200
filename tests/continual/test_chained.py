"""A chain of slow levels: one of them is consolidation, more of them follow one another."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from nestling.continual.protocol import Batch, Learner
from nestling.continual.strategies.chained import Chained, slower
from nestling.continual.strategies.consolidated import Consolidated
from nestling.levels import Consolidation
from nestling.models import build
from nestling.optim import adamw
from nestling.storage.packing import pack, unpack

FASTEST = Consolidation(surprise=None, period=60, average=0.5, dreams=4, length=8)


def model():
    torch.manual_seed(0)
    return build("transformer", width=16, heads=2, layers=1)


def text(seed: int) -> Batch:
    ids = torch.randint(97, 101, (6, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(ids[:, :-1], ids[:, 1:])


def chained(levels: int) -> Chained:
    return Chained(
        model(), partial(adamw, lr=1e-2), vocabulary=256, seed=3,
        chain=slower(FASTEST, levels, factor=2),
    )  # fmt: skip


def test_one_level_is_consolidation():
    one = chained(1)
    plain = Consolidated(
        model(), partial(adamw, lr=1e-2), vocabulary=256, seed=3, consolidation=FASTEST
    )
    assert isinstance(one, Learner)
    for seed in range(5):
        assert one.observe(text(seed)) == plain.observe(text(seed))
    assert one.cost == plain.cost
    assert torch.equal(one.predict(text(9).inputs), plain.predict(text(9).inputs))


def test_each_level_follows_the_one_before_it():
    learner = chained(2)
    before = [level.weights.embedding.weight.clone() for level in learner.slow]
    learner.observe(text(0))
    kept = 2 / 11  # of the first step, whatever the horizon
    followed = learner.model.embedding.weight
    for level, old in zip(learner.slow, before, strict=True):
        expected = kept * old + (1 - kept) * followed
        torch.testing.assert_close(level.weights.embedding.weight, expected)
        followed = level.weights.embedding.weight


def test_a_slower_level_holds_an_older_teacher():
    learner = chained(2)  # periods 60 and 120 of 48 tokens a step: steps 3, 5, ... and 4, 7, ...
    teachers = []
    for seed in range(8):
        learner.observe(text(seed))
        teachers.append([level.teacher.embedding.weight.clone() for level in learner.slow])
    moved = [
        [step for step in range(1, 8) if not torch.equal(teachers[step][n], teachers[step - 1][n])]
        for n in (0, 1)
    ]
    assert moved == [[2, 4, 6], [3, 6]]


def test_a_chain_costs_as_much_as_one_level_and_goes_on_to_the_bit():
    first, second = chained(3), chained(3)
    for seed in range(6):
        first.observe(text(seed))
    tensors: dict[str, torch.Tensor] = {}
    plain = pack(first.state(), tensors)
    second.load_state(unpack(plain, {name: t.clone() for name, t in tensors.items()}))
    assert [first.observe(text(s)) for s in (7, 8)] == [second.observe(text(s)) for s in (7, 8)]
    assert first.cost == second.cost
    assert sum(level.config.rehearsal for level in first.slow) == pytest.approx(0.5)
    assert sum(level.config.weight for level in first.slow) == pytest.approx(FASTEST.weight)
    with pytest.raises(ValueError, match="expected 2 slow levels, got 3"):
        chained(2).load_memory(first.memory())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fastest": Consolidation()}, "fastest: expected a period"),
        ({"levels": 0}, "levels: expected at least 1"),
        ({"factor": 1}, "factor: expected at least 2"),
    ],
)
def test_what_is_no_chain_is_refused(change, message):
    values = {"fastest": FASTEST, "levels": 2, "factor": 2, **change}
    with pytest.raises(ValueError, match=message):
        slower(values.pop("fastest"), values.pop("levels"), **values)


def test_no_level_is_refused():
    with pytest.raises(ValueError, match="chain: expected at least one slow level"):
        Chained(model(), vocabulary=256, chain=[])
