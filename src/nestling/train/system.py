"""A model and what trains it as one nested system: the rows of the level table (NL Def. 3-4)."""

from __future__ import annotations

import dataclasses

from nestling.levels import Component, Level, ordered
from nestling.models import LanguageModel
from nestling.optim import LevelwiseOptimizer

OUTER = "outer optimizer"
"""How a model's components say that they are moved by whatever trains it."""


def system(
    model: LanguageModel, optimizer: LevelwiseOptimizer, *, tokens_per_step: int
) -> list[Component]:
    """Everything that holds something over time, the moments of AdamW included, fastest first.

    Weights move with an optimizer step and not with every token, so no period of theirs is shorter
    than ``tokens_per_step``; and they need the moments of that step, which come before them.
    """
    moments = optimizer.components(tokens_per_step=tokens_per_step)
    inner = []
    for component in model.components():
        if not component.rule.startswith(OUTER):
            inner.append(component)
            continue
        period = component.level.period
        level = Level(None if period is None else max(period, tokens_per_step))
        inner.append(
            dataclasses.replace(
                component,
                level=level,
                rule=component.rule.replace(OUTER, "AdamW"),
                after=tuple(m.name for m in moments if f".period_{period}." in m.name),
            )
        )
    return ordered([*inner, *moments])
