"""What an engine carries from chunk to chunk, and per-row choices between two states."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from nestling.engine.layout import Segment
from nestling.memory.rule import LearningRule
from nestling.memory.state import Weights
from nestling.shapes import Tensor


@dataclass(frozen=True)
class Carry:
    """A memory state with nothing left open to defaults.

    Attributes:
        weights: now.
        momentum: now; empty if the rule has none.
        anchor: weights at the start of the chunk.
        initial: weights that ``DecayToInitial`` returns to.
    """

    weights: Weights
    momentum: Weights
    anchor: Weights
    initial: Weights

    def moved(self, weights: Weights, momentum: Weights) -> Carry:
        """The same chunk, one or more tokens later."""
        return dataclasses.replace(self, weights=weights, momentum=momentum)

    def opened(self, segment: Segment) -> Carry:
        """Rows whose chunk starts with the segment are anchored where they stand."""
        return dataclasses.replace(
            self, anchor=choose_all(segment.opens, self.weights, self.anchor)
        )

    def closed(self, segment: Segment, rule: LearningRule) -> Carry:
        """A step that was only accumulated for the output map ends with its chunk."""
        if rule.momentum is not None or rule.output_map is None:
            return self
        zeros = {name: torch.zeros_like(S) for name, S in self.momentum.items()}
        return dataclasses.replace(self, momentum=choose_all(segment.closes, zeros, self.momentum))


def choose(rows: bool | Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` in the chosen rows of the batch, ``old`` in the others."""
    if isinstance(rows, bool):
        return new if rows else old
    rows = rows.to(new.device)
    return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old)


def choose_all(rows: bool | Tensor, new: Weights, old: Weights) -> Weights:
    """:func:`choose` for every matrix."""
    return {name: choose(rows, new[name], old[name]) for name in new}


def one_of(weights: Weights, reader: int | None) -> Weights:
    """The weights of memory ``reader`` of a stack, or all of them."""
    return weights if reader is None else {name: W[:, reader] for name, W in weights.items()}


def matrix(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Static weights acting on row vectors."""
    return x @ weights[name]
