"""The Continuum Memory System: a chain of MLP blocks, each with its own update period (NL 7.1).

    y = MLP_k(... MLP_1(x))                                                   NL Eq. 73
    theta_l <- theta_l - sum of eta f(theta_l; x) over C_l tokens, every C_l  NL Eq. 71

Here the levels move across contexts: their weights are the model's parameters, held for
``period`` tokens and then moved by the gradient accumulated since (``optim/levelwise.py`` keeps
the clocks). A Transformer's MLP is the special case of one level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch.nn.functional as F
from torch import nn

from nestling.layers.norm import RMSNorm
from nestling.levels import Component, Level
from nestling.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class ContinuumConfig:
    """A chain of levels.

    Attributes:
        periods: tokens between two updates of each level, fastest first; 1 moves with every
            optimizer step.
        hidden: hidden size of every level's MLP.
    """

    periods: tuple[int, ...] = (1,)
    hidden: int = 512

    def __post_init__(self) -> None:
        if not self.periods:
            raise ValueError("periods: expected at least one level, got none")
        if list(self.periods) != sorted(self.periods):
            raise ValueError(f"periods: expected fastest first, got {self.periods}")
        if self.hidden < 1:
            raise ValueError(f"hidden: expected at least 1, got {self.hidden}")


class SwiGLU(nn.Module):
    """``(silu(x W_gate) * x W_up) W_down`` (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Position by position."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class MemoryLevel(nn.Module):
    """One block of the chain, residual and pre-normalised: ``x + MLP(norm(x))``."""

    def __init__(self, width: int, hidden: int, level: Level):
        super().__init__()
        self.level = level
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Position by position."""
        return x + self.mlp(self.norm(x))


class ContinuumMemory(nn.Module):
    """Levels applied one after the other, ``(B, T, D) -> (B, T, D)``.

    Args:
        width: D.
        config: periods and hidden size.

    >>> import torch
    >>> cms = ContinuumMemory(8, ContinuumConfig(periods=(1, 4096), hidden=16))
    >>> y, _ = cms(torch.randn(1, 5, 8))
    >>> y.shape, [level.level.period for level in cms.levels]
    (torch.Size([1, 5, 8]), [1, 4096])
    """

    def __init__(self, width: int, config: ContinuumConfig):
        super().__init__()
        self.config = config
        self.levels = nn.ModuleList(
            MemoryLevel(width, config.hidden, Level(period)) for period in config.periods
        )

    def _levels(self) -> list[MemoryLevel]:
        return cast(list[MemoryLevel], list(self.levels))

    def forward(
        self, x: Float[Tensor, "B T D"], state: None = None
    ) -> tuple[Float[Tensor, "B T D"], None]:
        """Fastest level first; the residual stream passes through all of them."""
        for level in self._levels():
            x = level(x)
        return x, state

    def components(self, name: str) -> list[Component]:
        """One component for every level."""
        return [
            Component(
                name=f"{name}.levels.{index}",
                level=level.level,
                memory=f"SwiGLU MLP, hidden {self.config.hidden}",
                rule="outer optimizer, gradient gathered over the period",
                context_flow="tokens, error of the next-token loss",
                parameters=sum(p.numel() for p in level.parameters()),
            )
            for index, level in enumerate(self._levels())
        ]
