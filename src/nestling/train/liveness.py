"""Which levels are dead: those that training cannot write, and those that it did not write.

A level whose period never ends within what it reads is not slow memory, it is none: nothing is
written, and its step size and projections get no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling.continuum import ContinuumLevel, InContext
from nestling.models import ModelConfig
from nestling.train.config import TrainConfig
from nestling.train.metrics import METRICS, read_metrics


def never_written(model: ModelConfig, config: TrainConfig) -> list[str]:
    """A sentence for every level of the chain that a run as ``config`` says leaves as it was.

    >>> from nestling.models import configure
    >>> model = configure("transformer", periods=(64, 512), regime="in_context")
    >>> never_written(model, TrainConfig(length=256))
    ['continuum.levels.1 is dead: its period of 512 tokens never ends before a sequence of 256 does']
    """  # noqa: E501
    found = []
    for index, level in enumerate(model.continuum.chain):
        reason = _reason(level, config)
        if reason:
            found.append(f"continuum.levels.{index} is dead: {reason}")
    return found


def not_written(directory: str | Path) -> str:
    """What the newest step in a run's metrics says of dead levels; "" if none is, or none is known.

    Raises:
        ValueError: if the metrics are broken, naming the line.
    """
    path = Path(directory) / METRICS
    rows: Sequence[Mapping[str, Any]] = read_metrics(path) if path.exists() else []
    row = next((row for row in reversed(rows) if row.get("levels")), None)
    if row is None:
        return ""
    dead = [name for name, level in row["levels"].items() if not level["moved"]]
    return f"dead at step {row['step']:,}, nothing was written: {', '.join(dead)}" if dead else ""


def _reason(level: ContinuumLevel, config: TrainConfig) -> str:
    period = level.period
    if not isinstance(level.regime, InContext):
        read = config.steps * config.tokens_per_step
        late = period is not None and period > read
        return f"its period of {period:,} tokens is longer than the run of {read:,}" if late else ""
    if period is None:
        return "it has no period"
    if not level.regime.step_size:
        return "its step size is 0"
    if period >= config.length and not config.carry_state:
        return (
            f"its period of {period:,} tokens never ends before a sequence of "
            f"{config.length:,} does"
        )
    return ""
