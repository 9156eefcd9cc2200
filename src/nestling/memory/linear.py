"""The linear memory: a matrix, ``M(x) = x W`` (NL section 5; linear attention's state)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nestling.memory.rule import LearningRule
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor

Apply = Callable[[str, Tensor], Tensor]
"""How a named matrix acts on row vectors; lets one definition read static and moving weights."""


class Surprise(NamedTuple):
    """What one matrix learns from a chunk: ``grad W = key^T error``, rank one for every token.

    Attributes:
        key: the matrix's own input, ``(..., C, I)``.
        error: derivative of the objective with respect to the matrix's output, ``(..., C, O)``.
        held: what the anchor answers under the key, ``key @ W``, ``(..., C, O)``.
    """

    key: Tensor
    error: Tensor
    held: Tensor


@dataclass(frozen=True)
class LinearMemory:
    """``M(x) = x W`` with one matrix ``"w"`` of shape ``(K, V)``.

    >>> LinearMemory().shapes(4, 3)
    {'w': (4, 3)}
    """

    parametric = True

    def shapes(self, key_size: int, value_size: int) -> dict[str, tuple[int, int]]:
        """Name and ``(in, out)`` of every matrix, from input to output."""
        return {"w": (key_size, value_size)}

    def read(self, x: Float[Tensor, "... K"], apply: Apply) -> Float[Tensor, "... V"]:
        """``x W``."""
        return apply("w", x)

    def surprises(
        self,
        weights: Weights,
        k: Float[Tensor, "... C K"],
        v: Float[Tensor, "... C V"],
        rule: LearningRule,
    ) -> dict[str, Surprise]:
        """The gradient of ``L(k W; v)`` as key and error, at the given weights."""
        held = k @ weights["w"]
        target = rule.target(v, lambda x: x @ weights["w"])
        return {"w": Surprise(k, rule.objective.gradient(held, target), held)}

    @property
    def name(self) -> str:
        """For tables."""
        return "linear"
