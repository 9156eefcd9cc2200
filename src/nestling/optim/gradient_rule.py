"""How an optimizer turns gradients into steps, as a value: memories x second moment x length.

    k  = phi(g)                                    higher-order keys, NL Eq. 51; P g, NL Eq. 46
    M_i <- write(M_i, k)                           each at its own period
    u  = sum_i weight_i read(M_i)
    u <- u / (sqrt(V) + eps)
    W <- W - lr * length(u)

Adam, momentum, Muon, AdaMuon and M3 are values of this one form, as the presets in the files of
their names show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch

from nestling.optim.clock import Clock
from nestling.optim.gradient_memory import Entries, SecondMoment, States
from nestling.optim.sharded import replicated
from nestling.shapes import Tensor

Length = Literal["plain", "rms", "spectral", "muon"]
"""How long a step is, for a matrix of I x O numbers.

``plain``: as it is. ``rms``: 0.2 for the root of its mean square, which is about that of AdamW's
steps, so that AdamW's learning rate fits (Liu et al. 2025, "Muon is Scalable"; AdaMuon).
``spectral``: times ``0.2 sqrt(max(I, O))``, the same for an orthogonal matrix without measuring
(``match_rms_adamw`` of ``torch.optim.Muon``). ``muon``: times ``sqrt(max(1, I / O))`` (its
``original``)."""
RMS = 0.2


@runtime_checkable
class Memory(Protocol):
    """A memory of gradients: :class:`GradientMemory`, or a deep one."""

    @property
    def name(self) -> str:
        """Of its state."""
        ...

    @property
    def period(self) -> int:
        """Steps between two of its answers."""
        ...

    @property
    def weight(self) -> float:
        """Of its answer in the sum."""
        ...

    @property
    def by_shape(self) -> bool:
        """Whether it takes gradients of one shape at a time."""
        ...

    @property
    def rule(self) -> str:
        """How it is written, for tables."""
        ...

    def entries(self, shape: torch.Size) -> Entries:
        """Names and shapes of what it holds for a parameter; all of it begins at zero."""
        ...

    def write(self, states: States, keys: Sequence[Tensor], clock: Clock) -> None:
        """Take one gradient for each parameter."""
        ...

    def read(self, states: States, keys: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """Its answer for each parameter."""
        ...


@dataclass(frozen=True, kw_only=True)
class GradientRule:
    """A rule for gradients.

    Args:
        name: for tables, and to tell states of different rules apart.
        memories: of gradients; their answers are added.
        key: what is written instead of the gradients, made of those of one shape.
        second_moment: by whose root the sum, or the key, is divided.
        corrected: divide averages by what their weights add up to, as Adam does.
        length: of a step, one of :data:`Length`.
        matrices: only matrices, and stacks of them, go by this rule.

    Raises:
        ValueError: naming what does not fit.

    >>> from nestling.optim.gradient_memory import GradientMemory
    >>> rule = GradientRule(name="momentum", memories=(GradientMemory(keep=0.9),))
    >>> state = [rule.zeros(torch.zeros(2))]
    >>> for t in (1, 2):
    ...     step = rule.update(state, [torch.tensor([1.0, 0.0])], Clock(t))
    >>> step
    [tensor([1.9000, 0.0000])]
    """

    name: str
    memories: tuple[Memory, ...]
    key: Callable[[Sequence[Tensor]], Sequence[Tensor]] | None = None
    second_moment: SecondMoment | None = None
    corrected: bool = False
    length: Length = "plain"
    matrices: bool = False

    def __post_init__(self) -> None:
        if not self.memories:
            raise ValueError("memories: expected at least one, got none")
        if self.length not in get_args(Length):
            raise ValueError(f"length: expected one of {get_args(Length)}, got {self.length!r}")
        if not self.matrices and self.length != "plain":
            raise ValueError(f"length: {self.length!r} is for matrices; set matrices=True")
        if self.corrected and any(getattr(memory, "keep", 0.0) == 1 for memory in self.memories):
            raise ValueError("corrected: expected memories that are averages, got keep=1")
        names = [memory.name for memory in self.memories]
        if len(set(names)) < len(names):
            raise ValueError(f"memories: expected different names, got {names}")

    @property
    def by_shape(self) -> bool:
        """Whether parameters of one shape are moved together, and others apart."""
        return self.key is not None or any(memory.by_shape for memory in self.memories)

    def entries(self, shape: torch.Size) -> Entries:
        """Names and shapes of what is remembered of a parameter."""
        found = {k: v for memory in self.memories for k, v in memory.entries(shape).items()}
        if self.second_moment is not None:
            found[self.second_moment.name] = tuple(shape)
        return found

    def zeros(self, like: Tensor) -> dict[str, Tensor]:
        """The state of a parameter that has not been moved yet, where ``like`` is."""
        return {
            name: torch.zeros_like(like) if shape == like.shape else like.new_zeros(shape)
            for name, shape in self.entries(like.shape).items()
        }

    def update(self, states: States, gradients: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """Write the gradients and give the steps to subtract, for a learning rate of 1.

        The results may be what a memory holds: they are to be read, not written.
        """
        V, corrects = self.second_moment, clock if self.corrected else None
        keys = gradients if self.key is None else self.key(gradients)
        if V is not None and V.at == "key":
            keys = V.divide(states, keys, gradients, corrects)
        total: list[Tensor] | None = None
        for memory in self.memories:
            memory.write(states, keys, clock)
            answer = memory.read(states, keys, clock)
            if self.corrected:
                answer = _divided(answer, clock.mass(getattr(memory, "keep", 0.0)))
            if total is None:
                total = answer if memory.weight == 1 else _times(answer, memory.weight)
            elif clock.reaches(memory.period):  # before its first period is over it answers nothing
                total = list(torch._foreach_add(total, answer, alpha=memory.weight))
        assert total is not None
        if V is not None and V.at == "update":
            total = V.divide(states, total, gradients if V.of == "gradient" else total, corrects)
        return total if self.length == "plain" else [self._sized(one) for one in total]

    def _sized(self, u: Tensor) -> Tensor:
        rows, columns = u.shape[-2:]
        if self.length == "rms":
            norm = replicated(torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True))
            return u * (RMS * math.sqrt(rows * columns) / norm.clamp(min=1e-30))
        factor = RMS * math.sqrt(max(rows, columns))
        return u * (math.sqrt(max(1, rows / columns)) if self.length == "muon" else factor)


def _times(tensors: Sequence[Tensor], factor: float) -> list[Tensor]:
    return list(torch._foreach_mul(list(tensors), factor))


def _divided(tensors: Sequence[Tensor], by: float | list[Tensor]) -> list[Tensor]:
    if isinstance(by, list):
        return [one / mass for one, mass in zip(tensors, by, strict=True)]
    return list(torch._foreach_div(list(tensors), by))
