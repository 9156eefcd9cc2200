"""What a self-modifying layer is and what it carries: configuration, state and tokens as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from nestling.memory import (
    DecayToInitial,
    Delta,
    DotProduct,
    GatedTokens,
    LearningRule,
    MemoryState,
)
from nestling.shapes import Tensor

Writes = Literal["on", "off"]
"""Whether a call moves inner memories; reading them never depends on it."""

GENERATORS = ("k", "v", "q", "eta", "alpha")

PATHS = ("k", "v", "q")
"""Projections of the residual stream, each behind a convolution. Gates read that of the keys.

Values need one of their own: from one input, memories that have faded make k = v, their error is
then exactly zero, and nothing is ever written again."""


@dataclass(frozen=True, kw_only=True)
class SelfModifyingConfig:
    """What a self-modifying layer is: memories x rule x chunk sizes, and where its gates start.

    Attributes:
        hidden: hidden size of the memories; None is the head size, 0 a linear memory.
        adaptive: which memories are written; the others are static projections. ``memory`` is
            always among them.
        rule: learning rule of all of them.
        chunk_size: tokens between two anchors of the generators.
        memory_chunk_size: the same for ``memory``.
        conv_size: taps of the convolutions on the key, value and query paths; 0 for none.
        eta_max: largest step size; above 1 DGD's transition turns negative (reading R7).
        eta_init: step size of ``memory`` at the start of training.
        generator_scale: what the generators' step sizes are multiplied by at the start; learned.
        alpha_init: fraction kept per token at the start (reading R4).
        beta_init: momentum factor at the start.
        recompute: chunks recomputed together in the backward pass; 0 keeps everything.
    """

    hidden: int | None = None
    adaptive: tuple[str, ...] = ("k", "v", "eta", "alpha", "memory")
    rule: LearningRule = LearningRule(
        objective=DotProduct(),
        retention=Delta(decay=DecayToInitial()),
        values="self_unit",
        hidden_step=0.1,
    )
    chunk_size: int = 32
    memory_chunk_size: int = 32
    conv_size: int = 4
    eta_max: float = 1.0
    eta_init: float = 0.5
    generator_scale: float = 0.1
    alpha_init: float = 0.993
    beta_init: float = 0.5
    recompute: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.adaptive) - {*GENERATORS, "memory"}
        if unknown:
            raise ValueError(f"adaptive: unknown {sorted(unknown)}, expected some of {GENERATORS}")
        if "memory" not in self.adaptive:
            raise ValueError(f"adaptive: must contain 'memory', got {self.adaptive}")
        if "alpha" in self.adaptive and not self.rule.retention.decays:
            raise ValueError(f"adaptive: {self.rule.name} has no decay that 'alpha' could make")
        for name in ("eta_init", "alpha_init", "beta_init"):
            top = self.eta_max if name == "eta_init" else 1.0
            if not 0 < getattr(self, name) < top:
                raise ValueError(f"{name}: expected between 0 and {top}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class SelfModifyingState:
    """State of the layer: the convolutions' last inputs and the memories.

    Attributes:
        tails: last inputs of the convolutions on ``PATHS``, ``(B, 3, D)`` each.
        generators: stacked on an axis N: ``(B, N, H, in, out)``; None if all are static.
        memory: ``(B, H, in, out)``.
    """

    tails: tuple[Tensor, ...]
    generators: MemoryState | None
    memory: MemoryState


@dataclass(frozen=True, kw_only=True)
class Generated(GatedTokens):
    """Tokens made by the generators for themselves, and what ``memory`` needs besides.

    ``memory_eta`` is the step size before the generators' own scale, ``query`` is what reads the
    memory; the generators themselves are read at their anchor only.
    """

    memory_eta: Tensor
    query: Tensor

    vectors: ClassVar[frozenset[str]] = GatedTokens.vectors | {"query"}
