"""Bits per byte against models whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nestling.demo.measure import losses, mean, reading, sequences, written
from nestling.models import build


class Counter(nn.Module):
    """Holds that x + 1 follows x with ``certainty``, and all others are equally likely."""

    def __init__(self, certainty: float):
        super().__init__()
        self.certainty = certainty

    def forward(self, ids, state=None):
        odds = math.log(self.certainty / ((1 - self.certainty) / 255))
        logits = torch.zeros(*ids.shape, 256)
        logits.scatter_(-1, (ids + 1)[..., None] % 256, odds)
        return logits, (0 if state is None else state) + ids.shape[1]


def test_a_uniform_model_needs_eight_bits():
    rows = sequences(bytes(range(200)), length=9, most=100)
    assert losses(Counter(1 / 256), rows).tolist() == pytest.approx([8.0] * 11)


def test_a_model_that_knows_needs_what_its_certainty_says():
    rows = sequences(bytes(range(200)), length=9, most=1000)
    assert rows.shape == (22, 10)
    got = losses(Counter(0.5), rows)
    assert got.tolist() == pytest.approx([1.0] * 22)
    assert (mean(got).value, mean(got).error) == pytest.approx((1.0, 0.0))
    assert [m.value for m in reading(Counter(0.25), rows, length=3)] == pytest.approx([2.0] * 3)


def test_sequences_cover_head_middle_and_tail_once():
    rows = sequences(bytes(range(101)), length=10, most=50)
    assert rows[:, 0].tolist() == [0, 20, 40, 60, 90]
    assert sequences(bytes(range(101)), length=10, most=10_000)[:, 0].tolist() == [
        *range(0, 100, 10)
    ]
    with pytest.raises(ValueError, match="at least 11 bytes, got 10"):
        sequences(bytes(10), length=10, most=50)


def test_mean_and_standard_error():
    got = mean(torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64))
    assert got.value == 3.0
    assert got.error == pytest.approx(math.sqrt((4 + 1 + 0 + 9) / 3) / 2)
    assert mean(torch.tensor([2.0])).error == 0.0


def test_every_row_is_read_from_a_fresh_state():
    torch.manual_seed(0)
    model = build("hope", width=16, heads=2, layers=1)
    rows = torch.randint(256, (20, 33))
    whole = losses(model, rows)
    alone = torch.cat([losses(model, row[None]) for row in rows])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)


def test_reading_in_pieces_is_reading_at_once():
    torch.manual_seed(0)
    model = build("hope", width=16, heads=2, layers=1)
    rows = torch.randint(256, (3, 97))
    pieces = reading(model, rows, length=32)
    logits, _ = model(rows[:, :-1])
    nats = nn.functional.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
    expected = nats.detach().reshape(3, 3, 32).mean((0, 2)) / math.log(2)
    assert [p.value for p in pieces] == pytest.approx(expected.tolist(), rel=1e-4)


def test_a_memory_that_reads_is_written():
    torch.manual_seed(0)
    model = build("hope", width=16, heads=2, layers=1)
    shares = written(model, torch.randint(256, (2, 65)))
    assert {name.split(".")[-1] for name in shares} >= {"memory", "k", "v", "eta", "alpha"}
    assert all(0.0 < share < 10.0 for share in shares.values())
    assert (
        written(build("transformer", width=16, heads=2, layers=1), torch.zeros(2, 9).long()) == {}
    )
