"""Bits per byte on text that was never trained on, and what was written while reading it.

Every measurement starts from a fresh state: what a model knows of a domain is in its weights, what
it picks up while reading is thrown away before the next sequence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestling.models import LanguageModel
from nestling.shapes import Int, Tensor

ROWS = 16
"""Sequences measured together."""


@dataclass(frozen=True)
class Mean:
    """A mean over sequences and its standard error."""

    value: float
    error: float


def byte_ids(data: bytes) -> Int[Tensor, " N"]:
    """Bytes as token ids.

    >>> byte_ids(b"hi").tolist()
    [104, 105]
    """
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).long()


def sequences(data: bytes, *, length: int, most: int) -> Int[Tensor, "N T"]:
    """Sequences of ``length + 1`` bytes, spread evenly over the data, as many as ``most`` allows.

    They do not overlap, except in the one byte that is predicted by one and read by the next.

    Raises:
        ValueError: if the data is shorter than one sequence.

    >>> sequences(b"abcdefghi", length=2, most=6).tolist()       # ab-c, cd-e and gh-i of four
    [[97, 98, 99], [99, 100, 101], [103, 104, 105]]
    """
    ids = byte_ids(data)
    there = (len(ids) - 1) // length
    if there < 1:
        raise ValueError(f"data: expected at least {length + 1} bytes, got {len(ids)}")
    wanted = max(1, min(there, most // length))
    picked = [i * (there - 1) // max(wanted - 1, 1) for i in range(wanted)]
    return torch.stack([ids[i * length : (i + 1) * length + 1] for i in picked])


@torch.no_grad()
def losses(model: nn.Module, rows: Int[Tensor, "N T"]) -> Tensor:
    """Bits per byte of each row, every row from a fresh state; ``(N,)`` float64."""
    found = []
    for part in rows.split(ROWS):
        logits, _ = model(part[:, :-1])
        nats = F.cross_entropy(logits.transpose(1, 2).double(), part[:, 1:], reduction="none")
        found.append(nats.mean(1) / math.log(2))
    return torch.cat(found)


def mean(values: Tensor) -> Mean:
    """Mean and standard error.

    >>> mean(torch.tensor([1.0, 3.0, 5.0, 3.0])).value
    3.0
    """
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return Mean(float(values.mean()), error)


@torch.no_grad()
def reading(model: nn.Module, rows: Int[Tensor, "N T"], *, length: int) -> list[Mean]:
    """Bits per byte by position while long rows are read with the state carried along.

    Args:
        model: read in pieces of ``length``, its state passed on.
        rows: ``(N, k length + 1)`` bytes.
        length: of one piece.

    Returns:
        One mean per piece: bytes 1 to ``length``, and so on.
    """
    state: Any = None
    found = []
    for start in range(0, rows.shape[1] - 1, length):
        inputs = rows[:, start : start + length]
        logits, state = model(inputs, state)
        targets = rows[:, start + 1 : start + length + 1]
        nats = F.cross_entropy(logits.transpose(1, 2).double(), targets, reduction="none")
        found.append(mean(nats.mean(1) / math.log(2)))
    return found


@torch.no_grad()
def written(model: LanguageModel, rows: Int[Tensor, "N T"]) -> dict[str, float]:
    """``|write| / |weight|`` of every inner memory after reading one sequence, by name."""
    rows = rows[:ROWS]
    before = model.initial_state(len(rows))
    _, after = model(rows[:, :-1], before)
    return model.liveness(before, after)
