"""A Continuum Memory System as a value: levels, regimes, and how they are put together (NL 7.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from nestling.continuum.rule import DeltaGradientDescent, ErrorRule, GradientDescent
from nestling.continuum.source import Backprop, Local, Source


@dataclass(frozen=True)
class AcrossContexts:
    """The weights are parameters: held for the period, then moved by the outer optimizer.

    Their clocks and gradients are those of :class:`nestling.optim.LevelwiseOptimizer`, which takes
    any torch optimizer for any level.
    """


@dataclass(frozen=True, kw_only=True)
class InContext:
    """The weights are a fast copy for each row, written every period; see docs/decisions/0008.

    Attributes:
        rule: the error part f. By default what suits the source: DGD for local errors, which no
            step size can make overshoot; gradient descent for those of the next-token loss, since
            DGD also erases what the matrix answers now, and there that is what the outer loop
            learned.
        source: where the error comes from.
        step_size: ``eta_0``; the step size is ``eta_0 exp(s)`` with a learned ``s`` that starts at
            0, so it stays positive. With 0 nothing is ever written.
        kept: share of what was written that stays at each write, in [0, 1]; the rest returns to
            the initial state. By default what suits the source (docs/log.md): 0.9 for local
            errors, whose fast copies otherwise drift to where no training text came; 1 for those
            of the next-token loss, which corrects itself.
    """

    rule: ErrorRule | None = None
    source: Source = field(default_factory=Local)
    step_size: float = 0.1
    kept: float | None = None

    def __post_init__(self) -> None:
        local = isinstance(self.source, Local)
        if self.rule is None:
            object.__setattr__(self, "rule", DeltaGradientDescent() if local else GradientDescent())
        if self.kept is None:
            object.__setattr__(self, "kept", 0.9 if local else 1.0)
        if not (self.step_size >= 0 and math.isfinite(self.step_size)):
            raise ValueError(f"step_size: expected a number >= 0, got {self.step_size}")
        if not 0 <= self.share_kept <= 1:
            raise ValueError(f"kept: expected a number in [0, 1], got {self.kept}")

    @property
    def error_rule(self) -> ErrorRule:
        """The rule, which is always there once this value is made."""
        assert self.rule is not None
        return self.rule

    @property
    def share_kept(self) -> float:
        """``kept``, which is always there once this value is made."""
        assert self.kept is not None
        return self.kept


@dataclass(frozen=True)
class ContinuumLevel:
    """One block of the chain.

    Args:
        period: tokens between two updates, at least 1; ``None`` is never.
        regime: :class:`AcrossContexts` (the default) or :class:`InContext`.
        hidden: hidden size of its MLP; ``None`` is the system's own.

    Raises:
        ValueError: naming the argument that is out of range.

    >>> ContinuumLevel(64, InContext(step_size=0.1)).period
    64
    """

    period: int | None
    regime: AcrossContexts | InContext = AcrossContexts()
    hidden: int | None = None

    def __post_init__(self) -> None:
        _check_size("period", self.period)
        _check_size("hidden", self.hidden)

    @property
    def in_context(self) -> bool:
        """Whether it has a fast copy for each row."""
        return isinstance(self.regime, InContext)

    def source_of(self, kind: type) -> bool:
        """Whether it is in context with errors of this kind."""
        return isinstance(self.regime, InContext) and isinstance(self.regime.source, kind)


@dataclass(frozen=True)
class Sequential:
    """``y = MLP_k(... MLP_1(x))``, all initial states learned outside (NL Eq. 73)."""


@dataclass(frozen=True)
class Nested:
    """The chain, where each level in context learns the next faster one's initial state.

    NL Eq. 72. At the end of the slower one's period the faster block starts anew from it.
    """


@dataclass(frozen=True)
class Independent:
    """``y = x + sum_l c_l MLP_l(x)`` with learned ``c_l``, 1 at the start (NL Eq. 74)."""


Variant = Sequential | Nested | Independent
VARIANTS: dict[str, Variant] = {
    "sequential": Sequential(), "nested": Nested(), "independent": Independent(),
}  # fmt: skip
"""By name, for the command line."""


@dataclass(frozen=True, kw_only=True)
class ContinuumConfig:
    """Levels, fastest first, and how they are put together.

    Attributes:
        periods: tokens between two updates of each level; 1 moves with every optimizer step. Short
            for ``levels`` that all move across contexts.
        hidden: hidden size of every level's MLP.
        levels: the levels themselves, where they are more than periods, which follow from them.
        variant: how they are put together.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> ContinuumConfig(periods=(1, 64)).chain[1]
    ContinuumLevel(period=64, regime=AcrossContexts(), hidden=None)
    >>> ContinuumConfig(levels=in_context(16, 64)).periods
    (16, 64)
    """

    periods: tuple[int | None, ...] = (1,)
    hidden: int = 512
    levels: tuple[ContinuumLevel, ...] = ()
    variant: Variant = Sequential()

    def __post_init__(self) -> None:
        if self.levels:
            if not all(isinstance(level, ContinuumLevel) for level in self.levels):
                raise ValueError(f"levels: expected ContinuumLevel values, got {self.levels!r}")
            own = tuple(level.period for level in self.levels)
            if self.periods not in (own, (1,)):
                raise ValueError(f"periods: expected those of levels, {own}, got {self.periods}")
            object.__setattr__(self, "periods", own)
        if not self.periods:
            raise ValueError("periods: expected at least one level, got none")
        ranks = [math.inf if period is None else period for period in self.periods]
        if ranks != sorted(ranks):
            raise ValueError(f"periods: expected fastest first, got {self.periods}")
        if self.hidden < 1:
            raise ValueError(f"hidden: expected at least 1, got {self.hidden}")
        if not isinstance(self.variant, Variant):
            raise ValueError(f"variant: expected one of {list(VARIANTS)}, got {self.variant!r}")
        kinds = {level.source_of(Backprop) for level in self.chain if level.in_context}
        if isinstance(self.variant, Nested) and len(kinds) > 1:
            # Their clocks differ: one counts all tokens, the other those that were observed.
            raise ValueError("levels: nested levels need the same kind of source, got both kinds")

    @property
    def chain(self) -> tuple[ContinuumLevel, ...]:
        """Every level, whichever way it was given."""
        return self.levels or tuple(ContinuumLevel(period) for period in self.periods)


def in_context(
    *periods: int | None,
    rule: ErrorRule | None = None,
    source: Source | None = None,
    step_size: float = 0.1,
    kept: float | None = None,
) -> tuple[ContinuumLevel, ...]:
    """Levels in context that differ in their period only.

    >>> [level.period for level in in_context(64, 256, source=Backprop())]
    [64, 256]
    """
    regime = InContext(rule=rule, source=source or Local(), step_size=step_size, kept=kept)
    return tuple(ContinuumLevel(period, regime) for period in periods)


def backprop_chunk(levels: Sequence[ContinuumLevel]) -> int | None:
    """Most tokens in a chunk of the next-token loss; ``None`` if no level learns from it.

    >>> backprop_chunk(in_context(100, 1000, source=Backprop(chunk=64)))
    64
    """
    sizes: list[int] = []
    for level in levels:
        if isinstance(level.regime, InContext) and isinstance(level.regime.source, Backprop):
            sizes.append(level.regime.source.chunk)
            if level.period is not None:
                sizes.append(level.period)
    return min(sizes, default=None)


def writes_by_loss(level: ContinuumLevel) -> bool:
    """Whether the level is ever written by the next-token loss.

    >>> [writes_by_loss(level) for level in in_context(8, None, source=Backprop())]
    [True, False]
    """
    regime = level.regime
    active = isinstance(regime, InContext) and regime.step_size > 0 and level.period is not None
    return active and level.source_of(Backprop)


def _check_size(name: str, value: int | None) -> None:
    if value is not None and (not isinstance(value, int) or value < 1):
        raise ValueError(f"{name}: expected a whole number >= 1 or None, got {value!r}")
