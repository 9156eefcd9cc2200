"""The Continuum Memory System: a chain of MLP blocks, each with its own update period (NL 7.1).

    y = MLP_k(... MLP_1(x))                                                   NL Eq. 73
    theta_l <- theta_l - sum of eta f(theta_l; x) over C_l tokens, every C_l  NL Eq. 71

A level moves across contexts (its weights are parameters, ``optim/levelwise.py`` keeps the clocks)
or in context (its parameters are the initial state of a fast copy for each row, ``continuum/``).
A Transformer's MLP is the special case of one level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from nestling.continuum.chunked import Chain, Plain, chunked
from nestling.continuum.config import (
    AcrossContexts,
    ContinuumConfig,
    ContinuumLevel,
    InContext,
    Independent,
    Nested,
    Sequential,
)
from nestling.continuum.fast import UNWATCHED, Fast, Watch
from nestling.continuum.source import Local
from nestling.continuum.state import ContinuumState, LevelState, start
from nestling.layers.continuum_levels import level_components
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying_config import Writes
from nestling.levels import Component, Level
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor


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
    """One block of the chain, residual and pre-normalised: ``x + MLP(norm(x))``.

    In context it also holds a step size and, for local errors, projections for targets and keys.
    """

    def __init__(self, width: int, hidden: int, spec: ContinuumLevel):
        super().__init__()
        self.spec, self.level = spec, Level(spec.period)
        self.hidden = spec.hidden or hidden
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, self.hidden)
        self.step_scale: nn.Parameter | None = None
        self.target: nn.Linear | None = None
        self.key: nn.Linear | None = None
        regime = spec.regime
        if not isinstance(regime, InContext) or not regime.step_size or spec.period is None:
            return
        self.step_scale = nn.Parameter(torch.zeros(()))
        if isinstance(regime.source, Local):
            self.target = nn.Linear(width, width, bias=False)
            if regime.source.key == "projection":
                self.key = nn.Linear(width, width, bias=False)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Position by position, with the learned weights."""
        return x + self.output(x)

    def output(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """The same without the residual."""
        return self.mlp(self.norm(x))

    def weights(self) -> Weights:
        """The learned initial state, ``(in, out)`` each, in float32 at least."""
        found = {"gate_up": self.mlp.gate_up.weight.mT, "down": self.mlp.down.weight.mT}
        return {
            name: W.float() if W.dtype in (torch.float16, torch.bfloat16) else W
            for name, W in found.items()
        }

    def fast(self, name: str) -> Fast:
        """The level in context, as the engine takes it."""
        regime = self.spec.regime
        assert isinstance(regime, InContext)
        eta = None
        if self.step_scale is not None:
            eta = regime.step_size * self.step_scale.exp()
        return Fast(
            name=name, period=self.spec.period, rule=regime.error_rule, source=regime.source,
            eta=eta, kept=regime.share_kept, norm=self.norm, target=self.target, key=self.key,
            learned=self.weights(),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Activity:
    """What a level in context did between two states.

    Attributes:
        moved: ``|theta_after - theta_before| / |theta_before|``; 0 is dead.
        writes: writes of a row, on average.
        contributed: share of the tokens read whose error has been written.
    """

    moved: float
    writes: float
    contributed: float

    @property
    def dead(self) -> bool:
        """Whether nothing was written."""
        return self.moved == 0.0


class ContinuumMemory(nn.Module):
    """Levels put together, ``(B, T, D) -> (B, T, D)``, with a state if any level is in context.

    Args:
        width: D.
        config: levels and variant.

    >>> import torch
    >>> cms = ContinuumMemory(8, ContinuumConfig(periods=(1, 4096), hidden=16))
    >>> y, _ = cms(torch.randn(1, 5, 8))
    >>> y.shape, [level.level.period for level in cms.levels]
    (torch.Size([1, 5, 8]), [1, 4096])
    """

    def __init__(self, width: int, config: ContinuumConfig):
        super().__init__()
        self.width, self.config = width, config
        self.levels = nn.ModuleList(
            MemoryLevel(width, config.hidden, level) for level in config.chain
        )
        independent = isinstance(config.variant, Independent)
        self.mix_scale = nn.Parameter(torch.ones(len(config.chain))) if independent else None

    def level_list(self) -> list[MemoryLevel]:
        """The levels, as what they are."""
        return cast(list[MemoryLevel], list(self.levels))

    def chain(self) -> Chain:
        """The levels as the engine takes them."""
        levels: list[Fast | Plain] = [
            level.fast(f"levels.{index}") if level.spec.in_context else level.output
            for index, level in enumerate(self.level_list())
        ]
        nested = isinstance(self.config.variant, Nested)
        return Chain(levels=tuple(levels), nested=nested, mix=self.mix_scale)

    def initial_state(self, batch: int) -> ContinuumState | None:
        """The learned initial states, one view for each row; ``None`` without levels in context."""
        chain = self.chain()
        if not chain.fast:
            return None
        levels: dict[str, LevelState] = {}
        for index, fast in chain.fast:
            slower = chain.slower_than(index)
            levels[str(index)] = start(
                fast.learned, batch, fast.rule, fast.written, slower.rule if slower else None
            )
        return ContinuumState(levels=levels)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: ContinuumState | None = None,
        lengths: Tensor | None = None,
        *,
        writes: Writes = "on",
        watch: Watch = UNWATCHED,
    ) -> tuple[Float[Tensor, "B T D"], ContinuumState | None]:
        """Read T tokens, and write the levels whose errors are local.

        Args:
            x: residual stream.
            state: from the last call, ``None`` to start from the learned initial states.
            lengths: real tokens in each row, the rest is padding on the right; ``None`` for all.
            writes: ``"off"`` returns the state as it was.
            watch: who wants to see the ends of periods.
        """
        chain = self.chain()
        if not chain.fast and isinstance(self.config.variant, Sequential):
            for level in self.level_list():
                x = level(x)
            return x, state
        state = state or self.initial_state(x.shape[0]) or ContinuumState(levels={})
        y, after = chunked(chain, x, state, lengths, writes=writes, watch=watch)
        return y, after if chain.fast else None

    def parameter_levels(self) -> dict[str, Level]:
        """Levels across contexts at their period; everything else moves with every step."""
        found = {name: Level(1) for name, _ in self.named_parameters()}
        for index, level in enumerate(self.level_list()):
            if isinstance(level.spec.regime, AcrossContexts):
                for name, _ in level.named_parameters(prefix=f"levels.{index}"):
                    found[name] = level.level
        return found

    def liveness(
        self, before: ContinuumState | None, after: ContinuumState | None
    ) -> dict[str, float]:
        """``|write| / |weight|`` of every level in context; 0 is dead."""
        return {name: level.moved for name, level in self.activity(before, after).items()}

    @torch.no_grad()
    def activity(
        self, before: ContinuumState | None, after: ContinuumState | None
    ) -> dict[str, Activity]:
        """What every level in context did between two states."""
        if before is None or after is None:
            return {}
        return {
            f"levels.{index}": _activity(before.levels[index], after.levels[index])
            for index in before.levels
        }

    def components(self, name: str = "") -> list[Component]:
        """Every level, and the weights that those in context start from."""
        return level_components(self, name)


def matched(width: int, config: ContinuumConfig, *, hidden: int) -> ContinuumConfig:
    """The levels with as many parameters as one MLP block of size ``hidden``.

    Args:
        width: D.
        config: the levels; each gets the same hidden size.
        hidden: of the one MLP block.

    Raises:
        ValueError: if projections alone take more, or a level has a hidden size of its own.

    >>> from nestling.continuum import in_context
    >>> config = matched(64, ContinuumConfig(levels=in_context(8, 64)), hidden=512)
    >>> count = lambda c: sum(p.numel() for p in ContinuumMemory(64, c).parameters())
    >>> abs(count(config) / count(ContinuumConfig(hidden=512)) - 1) < 0.01
    True
    """
    if any(level.hidden is not None for level in config.chain):
        raise ValueError("config: a level has a hidden size of its own")

    def count(size: int, like: ContinuumConfig) -> int:
        with torch.device("meta"):
            memory = ContinuumMemory(width, dataclasses.replace(like, hidden=size))
        return sum(p.numel() for p in memory.parameters())

    target = count(hidden, ContinuumConfig())
    base, slope = count(1, config), count(2, config) - count(1, config)
    size = 1 + round((target - base) / slope)
    if size < 1:
        raise ValueError(
            f"hidden: one MLP of width {width} and hidden {hidden} has {target} parameters, fewer "
            f"than these levels without any hidden vector ({base})"
        )
    return dataclasses.replace(config, hidden=size)


def _activity(before: LevelState, after: LevelState) -> Activity:
    change = _squares(after.weights[n] - W for n, W in before.weights.items())
    size = _squares(before.weights.values())
    seen = int((after.seen - before.seen).sum())
    used = int((after.contributed - before.contributed).sum())
    return Activity(
        moved=(change / max(size, 1e-30)) ** 0.5,
        writes=float((after.writes - before.writes).double().mean()),
        contributed=used / max(1, seen),
    )


def _squares(tensors: Iterable[Tensor]) -> float:
    return sum(float(tensor.square().sum()) for tensor in tensors)
