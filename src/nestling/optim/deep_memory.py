"""A deep memory of gradients: an MLP that is asked with the newest one (NL Eq. 50).

    u   = g / rms(g), its rows as tokens
    m  <- m_0 + keep (m - m_0) - eta dL(m(u); v)/dm        L: an inner objective, v: ones or u
    answer = m(u)

The memory, its objectives and their gradients are those of :mod:`nestling.memory`: an MLP that is
written by a chunk of tokens, which here are the rows of a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

from nestling.memory import DotProduct, LearningRule, MLPMemory
from nestling.memory.objective import Objective
from nestling.optim.checks import check_at_least, check_share
from nestling.optim.clock import Clock
from nestling.optim.gradient_memory import Entries, Orthogonal, States
from nestling.optim.remembered import Remembered
from nestling.optim.sharded import parts, whole
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class DeepGradientMemory:
    """An MLP for each matrix of the model; a stack of matrices has one for each.

    Args:
        memory: its form. Its keys are rows of the gradient, or columns if those are shorter.
        objective: what a write minimises.
        values: ``"gradient"``: it learns to answer with gradients; ``"ones"``: NL Eq. 50 as
            printed, ``-<m(u), 1>`` with the dot product.
        keep: fraction kept of what was written, in [0, 1].
        eta: step of a write.
        hidden_step: what ``eta`` is multiplied by for all but the last matrix.
        output: map of its answer, or ``None``.

    Raises:
        ValueError: naming what does not fit.
    """

    memory: MLPMemory
    objective: Objective = DotProduct()
    values: Literal["gradient", "ones"] = "gradient"
    keep: float = 0.9
    eta: float = 1.0
    hidden_step: float = 0.1
    output: Orthogonal | None = None

    name = "deep"
    period = 1
    weight = 1.0
    by_shape = True

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_at_least("eta", self.eta)
        check_at_least("hidden_step", self.hidden_step)
        if self.values not in ("gradient", "ones"):
            raise ValueError(f"values: expected 'gradient' or 'ones', got {self.values!r}")

    def entries(self, shape: torch.Size) -> Entries:
        """For each matrix of the MLP, how far it is from where it began."""
        size = min(shape[-2:])
        made = self.memory.shapes(size, size)
        return {f"deep_{name}": (*shape[:-2], *io) for name, io in made.items()}

    def write(self, states: States, keys: Sequence[Tensor], clock: Clock) -> None:
        """One chunk of tokens for each matrix: its gradient's rows, all with the same weights."""
        u = _tokens(keys)
        weights = self._weights(states, u)
        values = u if self.values == "gradient" else torch.ones_like(u)
        rule = LearningRule(objective=self.objective)
        for name, surprise in self.memory.surprises(weights, u, values, rule).items():
            step = self.eta * (1.0 if name == self.memory.names[-1] else self.hidden_step)
            moved = surprise.key.mT @ surprise.error * (-step / u.shape[-2])
            held = [state[f"deep_{name}"] for state in states]
            for old, one in zip(held, parts(list(moved), held), strict=True):
                old.mul_(self.keep).add_(one)

    def read(self, states: States, keys: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """``m(u)`` as matrices of the gradients' shapes."""
        u = _tokens(keys)
        weights = self._weights(states, u)
        answer = self.memory.read(u, lambda name, h: h @ weights[name])
        rows, columns = keys[0].shape[-2:]
        answers = parts(list(answer.mT if rows < columns else answer), keys)
        return answers if self.output is None else self.output(answers)

    def remembered(self) -> dict[str, Remembered]:
        """For the level table."""
        rule = f"{type(self.objective).__name__} x Decay({self.keep:g})"
        value = "g" if self.values == "gradient" else "1"
        return {
            f"deep_{name}": Remembered(
                rule=rule, memory=f"MLP, {self.memory.depth} layers", objective=f"L(m(g); {value})"
            )
            for name in self.memory.names
        }

    @property
    def rule(self) -> str:
        """How it is written, for tables."""
        return f"{type(self.objective).__name__} x Decay({self.keep:g}) on an MLP"

    def _weights(self, states: States, u: Tensor) -> dict[str, Tensor]:
        made = self.memory.shapes(u.shape[-1], u.shape[-1])
        return {
            name: torch.stack([whole(state[f"deep_{name}"]) for state in states])
            + _initial(io, last=name == self.memory.names[-1], dtype=u.dtype, device=u.device)
            for name, io in made.items()
        }


@lru_cache(maxsize=64)
def _initial(
    shape: tuple[int, int], *, last: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Where the MLP begins: random but the same for every matrix, and answering with its key."""
    if last:
        return torch.zeros(shape, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
    return (drawn / shape[0] ** 0.5).to(dtype=dtype, device=device)


def _tokens(keys: Sequence[Tensor]) -> Tensor:
    """Gradients of one shape as rows of root mean square 1, ``(N, ..., T, K)``, K the shorter."""
    g = torch.stack([whole(key) for key in keys])
    rows, columns = g.shape[-2:]
    g = g.mT if rows < columns else g
    return g / g.square().mean(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-30)
