"""Which parameters of a model move together: those of one level."""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.nn import Parameter

from nestling.levels import Level


def by_level(model: nn.Module) -> list[tuple[Level, dict[str, Parameter]]]:
    """The parameters that are trained, grouped by their level.

    A model says its levels by ``parameter_levels()``; one that has no such method, as a model from
    elsewhere, moves with every step.

    >>> [(level.period, list(named)) for level, named in by_level(nn.Linear(1, 2))]
    [(1, ['weight', 'bias'])]
    """
    said = getattr(model, "parameter_levels", None)
    of: dict[str, Level] = cast(dict[str, Level], said()) if callable(said) else {}
    levels: dict[Level, dict[str, Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            levels.setdefault(of.get(name, Level(1)), {})[name] = parameter
    return list(levels.items())
