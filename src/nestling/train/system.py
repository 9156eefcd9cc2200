"""A model and what trains it as one nested system (NL Def. 3-4).

    architecture makes the gradients   -> moments       generation        NL 3.3
    moments                            -> weights       conditioning

Any module, any torch optimizer: the parts of the model say what they are
(``levels/declared.py``), the optimizer's state says what it remembers (``optim/memories.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn

from nestling.levels import OUTER, Component, Level, NestedSystem, SlowLevel, Transfer
from nestling.levels.declared import declared
from nestling.optim import LevelwiseOptimizer
from nestling.optim.memories import Memory, memories

Mover = tuple[Level, torch.optim.Optimizer]
"""An optimizer, and how often it steps."""


def nested_system(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | LevelwiseOptimizer | None = None,
    *,
    tokens_per_step: int = 1,
    slow: SlowLevel | None = None,
) -> NestedSystem:
    """Everything that holds something over time, ordered by NL Def. 2.

    Args:
        model: any module; those of its parts that have a method ``components(name)`` speak for
            themselves, all other parameters are one component.
        optimizer: what trains it: any torch optimizer, or one for each level. ``None``: nothing
            moves the weights.
        tokens_per_step: tokens between two steps of the optimizer.
        slow: the slow level that holds the weights, if there is one.

    Weights move with an optimizer step and not with every token, so no period of theirs is shorter
    than ``tokens_per_step``; and they need the moments of that step, which come before them. Where
    an optimizer moves only some weights of a component, the component is shown in parts.

    Raises:
        ValueError: if the components do not fit together, or ``tokens_per_step`` is below 1.

    >>> model = nn.Linear(4, 4)
    >>> adam = torch.optim.AdamW(model.parameters())
    >>> system = nested_system(model, adam, tokens_per_step=2048)
    >>> [[part.name for part in level] for level in system.levels]
    [['optimizer.exp_avg', 'optimizer.exp_avg_sq'], ['other weights']]
    """
    if not isinstance(tokens_per_step, int) or tokens_per_step < 1:
        raise ValueError(f"tokens_per_step: expected a whole number >= 1, got {tokens_per_step!r}")
    movers = _movers(optimizer, tokens_per_step)
    found, parts = [], {}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    moved_by = _moved_by(model, movers)
    for component in declared(model):
        if component.kind == "weights":
            pieces = _moved(component, movers, moved_by, sizes)
        else:
            pieces = [component]
        found += pieces
        parts[component.name] = tuple(piece.name for piece in pieces)
    held_still = {c.name for c in found if c.level.period is None}
    found = [_renamed(component, parts, held_still) for component in found]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = [one for index, mover in enumerate(movers) for one in _memories(movers, index, mover)]
    found = _with_moments(found, held, names)
    if slow is not None:
        trained = [c.name for c in found if c.kind == "weights" and c.level.period is not None]
        found += slow.components(tokens_per_step=tokens_per_step, of=trained)
    return NestedSystem(tuple(found))


def _movers(
    optimizer: torch.optim.Optimizer | LevelwiseOptimizer | None, tokens_per_step: int
) -> list[Mover]:
    if optimizer is None:
        return []
    if not isinstance(optimizer, LevelwiseOptimizer):
        return [(Level(tokens_per_step), optimizer)]
    return [
        (Level(max(level.period or 1, tokens_per_step)), inner) for level, inner in optimizer.moving
    ]


def _memories(movers: list[Mover], index: int, mover: Mover) -> list[Memory]:
    level, optimizer = mover
    name = "optimizer"
    if len(movers) > 1:
        same = [i for i, (other, _) in enumerate(movers) if other == level]
        name = f"optimizer.period_{level.period}"
        if len(same) > 1:
            name += f".{same.index(index)}"
    return memories(optimizer, level=level, name=name)


def _moved_by(model: nn.Module, movers: list[Mover]) -> dict[str, int | None]:
    """The place of each parameter's optimizer by name; ``None`` for those that nothing moves."""
    owner = {
        id(parameter): index
        for index, (_, optimizer) in enumerate(movers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {
        name: owner.get(id(parameter)) if parameter.requires_grad else None
        for name, parameter in model.named_parameters()
    }


def _moved(
    component: Component,
    movers: list[Mover],
    moved_by: dict[str, int | None],
    sizes: dict[str, int],
) -> list[Component]:
    """A component of weights at the level of its optimizer, in parts if it has several."""
    by: dict[int | None, list[str]] = {}
    for name in component.weights:
        by.setdefault(moved_by[name], []).append(name)
    pieces, seen = [], []
    for index, weights in by.items():
        level, how = Level(None), "held"
        if index is not None:
            level, optimizer = movers[index]
            how = component.rule.replace(OUTER, _name(optimizer))
        name = component.name
        if len(by) > 1:
            where = "held" if index is None else f"{how.split(',')[0]}, {level.period:,}"
            name += f" ({where})" if where not in seen else f" ({where}, {len(seen)})"
            seen.append(where)
        pieces.append(
            dataclasses.replace(
                component,
                name=name,
                level=level,
                rule=how,
                weights=tuple(weights),
                parameters=sum(sizes[one] for one in weights),
                transfers=component.transfers if index == next(iter(by)) else (),
            )
        )
    return pieces


def _name(optimizer: torch.optim.Optimizer) -> str:
    """That of its rule, for an optimizer that is a rule."""
    return getattr(optimizer, "name", type(optimizer).__name__)


def _renamed(
    component: Component, parts: dict[str, tuple[str, ...]], held_still: set[str]
) -> Component:
    """Its transfers and what it comes after, with all parts of a component in its place.

    No error moves what is held still.
    """

    def names(name: str) -> Iterable[str]:
        return parts.get(name, (name,))

    return dataclasses.replace(
        component,
        after=tuple(part for name in component.after for part in names(name)),
        transfers=tuple(
            Transfer(transfer.kind, source, target)
            for transfer in component.transfers
            for source in names(transfer.source)
            for target in names(transfer.target)
            if transfer.kind != "backpropagation" or target not in held_still
        ),
    )


def _with_moments(
    components: list[Component], held: list[Memory], names: dict[int, str]
) -> list[Component]:
    """Weights behind the moments that serve them, and the moments."""
    owner = {weight: c.name for c in components for weight in c.weights}
    after: dict[str, list[str]] = {}
    moments = []
    for memory in held:
        of = [names[id(p)] for p in memory.serves if id(p) in names]
        served = dict.fromkeys(owner[weight] for weight in of)
        for name in served:
            after.setdefault(name, []).append(memory.component.name)
        made = (Transfer("generation", name, memory.component.name) for name in served)
        used = (Transfer("conditioning", memory.component.name, name) for name in served)
        moments.append(memory.component.linked(*made, *used))
    return [
        dataclasses.replace(c, after=(*c.after, *after.get(c.name, ()))) for c in components
    ] + moments
