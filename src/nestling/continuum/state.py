"""What levels in context carry from call to call: explicit values with a batch axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from nestling.continuum.rule import ErrorRule
from nestling.memory.state import Weights
from nestling.shapes import Tensor

MATRICES = ("gate_up", "down")
"""A block's matrices, from input to output."""


@dataclass(frozen=True, kw_only=True)
class InitialState:
    """The initial state of a block, as the next slower level learns it (NL Eq. 72).

    Attributes:
        weights: where the block starts anew, ``(B, in, out)``.
        gathered: sum of its errors over the slower level's open period.
        moments: of the slower level's rule; name, then matrix.
        age: ``(B,)`` how often it has been moved.
    """

    weights: Weights
    gathered: Weights
    moments: Mapping[str, Weights]
    age: Tensor


@dataclass(frozen=True, kw_only=True)
class LevelState:
    """One block in context. Whole numbers decide control flow and live on the CPU.

    Attributes:
        weights: ``gate_up`` ``(B, D, 2 hidden)`` and ``down`` ``(B, hidden, D)``, held for the
            period.
        gathered: sum of the errors of the open period, same shapes.
        moments: of the rule; name, then matrix.
        initial: what a slower level learns for it; ``None`` unless nested.
        clock: ``(B,)`` tokens in the open period.
        age: ``(B,)`` writes since the block was last started.
        writes: ``(B,)`` writes in all.
        seen: ``(B,)`` tokens that were read.
        contributed: ``(B,)`` tokens whose error has been written.
    """

    weights: Weights
    gathered: Weights
    moments: Mapping[str, Weights] = field(default_factory=dict)
    initial: InitialState | None = None
    clock: Tensor
    age: Tensor
    writes: Tensor
    seen: Tensor
    contributed: Tensor


@dataclass(frozen=True, kw_only=True)
class ContinuumState:
    """State of a chain: its levels in context, by their place in it."""

    levels: Mapping[str, LevelState]


def start(
    weights: Weights,
    batch: int,
    rule: ErrorRule,
    written: tuple[str, ...] = MATRICES,
    slower: ErrorRule | None = None,
) -> LevelState:
    """The state before the first token: one view of the learned weights for every row.

    Args:
        weights: ``(in, out)`` each, in float32 or wider.
        batch: rows B.
        rule: of the level.
        written: matrices that are written; only they have errors and moments.
        slower: rule of the level that learns the initial state; ``None`` unless nested.

    >>> initial = {"gate_up": torch.zeros(4, 12), "down": torch.zeros(6, 4)}
    >>> from nestling.continuum.rule import GradientDescent
    >>> start(initial, 2, GradientDescent()).weights["down"].shape
    torch.Size([2, 6, 4])
    """
    rows = {name: W.expand(batch, *W.shape) for name, W in weights.items()}
    own = {name: rows[name] for name in written}

    def none() -> Tensor:
        return torch.zeros(batch, dtype=torch.long)

    initial = None
    if slower is not None:
        initial = InitialState(
            weights=own, gathered=zeros(own), moments=fresh(own, slower), age=none()
        )
    return LevelState(
        weights=rows, gathered=zeros(own), moments=fresh(own, rule), initial=initial,
        clock=none(), age=none(), writes=none(), seen=none(), contributed=none(),
    )  # fmt: skip


def fresh(weights: Weights, rule: ErrorRule) -> dict[str, Weights]:
    """Moments before the first write."""
    return {moment: zeros(weights) for moment in rule.moments}


def zeros(weights: Weights) -> Weights:
    """Nothing, in these shapes and without memory of its own."""
    return {name: W.new_zeros(()).expand(W.shape) for name, W in weights.items()}
