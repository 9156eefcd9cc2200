"""What a stacked model says of itself, for the level table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nestling.continuum import InContext
from nestling.hf.mlp_finder import BlockMLP
from nestling.hf.stack_observe import Stack
from nestling.levels import NEXT_TOKEN, OUTER, Component, Level, Transfer, path


def stack_components(
    base: Any, mlps: Sequence[BlockMLP], stack: Stack, across: Mapping[str, int], name: str
) -> list[Component]:
    """Levels in context, caches of attention, and the weights of the model by their level."""
    found = [*_levels(stack, name), *_weights(base, stack, across, name)]
    if stack.base.decoder:
        found += [
            Component(
                name=path(name, f"blocks.{mlp.index}.cache"), level=Level(1), parameters=0,
                memory="keys and values of all tokens", rule="appended", context_flow="tokens",
                kind="non_parametric",
            )
            for mlp in mlps
        ]  # fmt: skip
    return found


def _levels(stack: Stack, name: str) -> list[Component]:
    found: dict[str, Component] = {}
    for slot in stack.slots:
        level = stack.config.levels[slot.level]
        regime = level.regime
        assert isinstance(regime, InContext)
        own = path(name, f"blocks.{slot.block}.levels.{slot.level}")
        inputs, outputs = slot.shape
        rank = stack.config.rank
        size = inputs * outputs if rank is None else min(rank, *slot.shape) * (inputs + outputs)
        size *= 1 + len(regime.error_rule.moments)
        old = found.get(own)
        what = f"{slot.path.split('.')[-1]} {inputs}-{outputs}"
        rule = f"{regime.source.name} x {type(regime.error_rule).__name__}"
        found[own] = Component(
            name=own,
            level=Level(level.period),
            memory=f"{old.memory}, {what}"
            if old
            else f"beside {what}" + ("" if rank is None else f", rank {rank}"),
            rule=f"{rule}, gathered over the period",
            context_flow="tokens, error of the next-token loss",
            parameters=size + (old.parameters if old else 0),
            objective=NEXT_TOKEN,
            transfers=(Transfer("initialisation", path(name, "base.weights"), own),),
        )
    return list(found.values())


def _weights(base: Any, stack: Stack, across: Mapping[str, int], name: str) -> list[Component]:
    levels: dict[str, Level] = {}
    for own, index in across.items():
        for parameter, _ in base.get_submodule(own).named_parameters(prefix=own):
            levels[parameter] = Level(stack.config.levels[index].period)
    groups: dict[Level | None, list[str]] = {None: []}
    sizes: dict[str, int] = {}
    for parameter, value in base.named_parameters():
        groups.setdefault(levels.get(parameter), []).append(parameter)
        sizes[parameter] = value.numel()
    return [
        Component(
            name=path(name, "base.weights" if level is None else f"base.period_{level.period}"),
            level=level or Level(1),
            memory=f"{type(base).__name__}" if level is None else "MLPs across contexts",
            rule=OUTER,
            context_flow="tokens, error of the next-token loss",
            parameters=sum(sizes[one] for one in members),
            objective=NEXT_TOKEN,
            kind="weights",
            weights=tuple(path(name, "base", one) for one in members),
        )
        for level, members in groups.items()
    ]
