"""The components of any model: what its modules say of themselves, and the weights that none names.

A module speaks for everything below it by a method ``components(name)``, where ``name`` is its path
in the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from torch import nn

from nestling.levels.component import OUTER, Component, path
from nestling.levels.level import Level

OTHERS = "other weights"
"""Name of the component that holds the weights which no module speaks for."""


def declared(model: nn.Module) -> list[Component]:
    """The components of a model, so that every parameter belongs to exactly one.

    Raises:
        ValueError: if two components claim a parameter, or one claims what the model has not.

    >>> [(c.name, c.parameters) for c in declared(nn.Linear(2, 3))]
    [('other weights', 9)]
    """
    found = _spoken(model, "")
    parameters = dict(model.named_parameters())
    claimed = Counter(name for component in found for name in component.weights)
    for name, times in claimed.items():
        if times > 1:
            who = [c.name for c in found if name in c.weights]
            raise ValueError(f"components: {' and '.join(who)} both claim the parameter {name!r}")
        if name not in parameters:
            raise ValueError(f"components: the model has no parameter {name!r}")
    rest = [name for name in parameters if name not in claimed]
    if rest:
        found.append(
            Component(
                name=OTHERS,
                level=Level(1),
                memory=f"{len(rest)} tensors that no component claims",
                rule=OUTER,
                context_flow="tokens, error of the outer loss",
                parameters=sum(parameters[name].numel() for name in rest),
                objective="outer loss",
                kind="weights",
                weights=tuple(rest),
            )
        )
    return found


def _spoken(module: nn.Module, name: str) -> list[Component]:
    speak: Callable[[str], Iterable[Component]] | None = getattr(module, "components", None)
    if callable(speak):
        return list(speak(name))
    return [
        component
        for own, child in module.named_children()
        for component in _spoken(child, path(name, own))
    ]
