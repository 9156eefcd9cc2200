"""Plain words for what a level in context is made of: for presets and the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from nestling.continuum.config import (
    AcrossContexts,
    ContinuumLevel,
    InContext,
)
from nestling.continuum.rule import (
    Adam,
    DeltaGradientDescent,
    ErrorRule,
    GradientDescent,
    HeavyBall,
)
from nestling.continuum.source import Backprop, Local, Source

SOURCES: dict[str, Source] = {
    "local": Local(),
    "local_every": Local(matrices="every"),
    "backprop": Backprop(),
    "backprop_second_order": Backprop(order=2),
}
"""Where the error comes from."""

ERROR_RULES: dict[str, ErrorRule] = {
    "gradient_descent": GradientDescent(),
    "heavy_ball": HeavyBall(),
    "adam": Adam(),
    "delta": DeltaGradientDescent(),
}
"""What is made of it."""

REGIMES: dict[str, AcrossContexts | InContext] = {
    "across_contexts": AcrossContexts(),
    "in_context": InContext(),
}
"""When it is written."""

Value = TypeVar("Value")


def levels_of(
    periods: Sequence[int | None],
    *,
    regime: Any = "across_contexts",
    **changes: Any,
) -> tuple[ContinuumLevel, ...]:
    """Levels from words.

    Args:
        periods: of the levels, fastest first.
        regime: a name in ``REGIMES`` or a value, for all levels or a tuple with one for each.
        **changes: of all levels in context: ``source``, a name in ``SOURCES`` or a value;
            ``error_rule``, a name in ``ERROR_RULES`` or a value; ``step_size`` and ``kept``,
            numbers.

    Returns:
        the levels; none if all are across contexts, where the periods alone say everything.

    Raises:
        ValueError: for an unknown word, or a change without a level in context, naming it.

    >>> levels_of((64, 512), regime="in_context", source="backprop")[1].regime.source
    Backprop(order=1, chunk=256)
    >>> levels_of((64, 4096), regime=("in_context", "across_contexts"))[1].in_context
    False
    """
    each = regime if isinstance(regime, tuple) else (regime,) * len(periods)
    if len(each) != len(periods):
        raise ValueError(f"regime: expected one for each of {len(periods)} levels, got {len(each)}")
    regimes = [named("regime", one, REGIMES, AcrossContexts | InContext) for one in each]
    wanted: dict[str, Any] = {}
    if "source" in changes:
        wanted["source"] = named("source", changes["source"], SOURCES, Source)
    if "error_rule" in changes:
        wanted["rule"] = named("error_rule", changes["error_rule"], ERROR_RULES, ErrorRule)
    for name in ("step_size", "kept"):
        if name in changes:
            wanted[name] = _number(name, changes[name])
    if wanted and not any(isinstance(one, InContext) for one in regimes):
        name = next(iter(changes))
        raise ValueError(f"{name}: no level is in context: give regime='in_context'")
    if not any(isinstance(one, InContext) for one in regimes):
        return ()
    return tuple(
        ContinuumLevel(period, _changed(one, wanted, by_word=isinstance(given, str)))
        for period, one, given in zip(periods, regimes, each, strict=True)
    )


def _changed(
    regime: AcrossContexts | InContext, wanted: Mapping[str, Any], *, by_word: bool
) -> AcrossContexts | InContext:
    if not isinstance(regime, InContext):
        return regime
    # Another source comes with what suits it, unless something else was asked for.
    own = {"rule": None, "kept": None} if by_word and "source" in wanted else {}
    return dataclasses.replace(regime, **{**own, **wanted})


def named(name: str, given: Any, known: Mapping[str, Value], kind: Any) -> Value:
    """A value, or the one that a word stands for.

    Raises:
        ValueError: naming the argument ``name``, if it is neither.
    """
    if isinstance(given, str) and given in known:
        return known[given]
    if isinstance(given, kind):
        return cast(Value, given)
    raise ValueError(f"{name}: expected one of {list(known)} or a value, got {given!r}")


def _number(name: str, given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise ValueError(f"{name}: expected a number, got {given!r}")
    return float(given)
