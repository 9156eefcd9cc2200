"""What a torch optimizer remembers, as components: every optimizer state is a memory of gradients.

    momentum      M <- b M + g            dot product, decay                         NL Eq. 9-12
    Adam          m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2: one level, for neither
                  needs the other at its time                                       NL Def. 2

Nothing here knows an optimizer by its class: states and groups say what there is, or the optimizer
itself by ``remembered(group)`` and ``entries(group, shape)``, as those of this library do, whose
memories have their own periods. Another that has not moved yet is asked what it will remember: a
copy of it moves small stand-ins once.
"""

from __future__ import annotations

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import Parameter

from nestling.levels import Component, Level, path
from nestling.optim.remembered import GRADIENTS, SQUARES, Remembered
from nestling.shapes import Tensor

# State key -> (group's entry that holds the decay, what it compresses, entries needed before it).
_KNOWN: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "exp_avg": ("betas.0", GRADIENTS, ()),
    "exp_avg_sq": ("betas.1", SQUARES, ()),
    "max_exp_avg_sq": ("", "second moments, their maximum", ("exp_avg_sq",)),
    "exp_inf": ("betas.1", "absolute gradients, their fading maximum", ()),
    "square_avg": ("alpha rho", SQUARES, ()),
    "grad_avg": ("alpha", GRADIENTS, ()),
    "acc_delta": ("rho", "squared steps", ("square_avg",)),
    "momentum_buffer": ("momentum", GRADIENTS, ("square_avg", "grad_avg")),
    "sum": ("", SQUARES, ()),
    "row_var": ("", "squared gradients, mean of every row", ()),
    "col_var": ("", "squared gradients, mean of every column", ()),
    "variance": ("", SQUARES, ()),
}


_CLOCKS = ("step", "mu_product", "eta", "mu")
"""Entries that count or are functions of the count: told by name for parameters without axes."""


@dataclass(frozen=True)
class Memory:
    """One memory of an optimizer.

    Attributes:
        component: for the level table.
        serves: the parameters whose gradients it compresses.
    """

    component: Component
    serves: tuple[Parameter, ...]


def memories(
    optimizer: torch.optim.Optimizer, *, level: Level | None = None, name: str = "optimizer"
) -> list[Memory]:
    """Everything that a torch optimizer remembers of the gradients.

    Entries of one name and one rule are one memory, over all parameters that have it. Clocks
    (``step``) are none.

    Args:
        optimizer: any that steps without a closure; it stays as it is.
        level: how often it steps; with every token unless given.
        name: of the optimizer, in front of its memories' names.

    Raises:
        ValueError: if it has not moved yet and cannot say what it will remember.

    >>> W = Parameter(torch.zeros(2, 3))
    >>> adam = torch.optim.Adam([W], betas=(0.9, 0.99))
    >>> [(m.component.name, m.component.rule, m.component.parameters) for m in memories(adam)]
    [('optimizer.exp_avg', 'DotProduct x Decay(0.9)', 6),
     ('optimizer.exp_avg_sq', 'DotProduct x Decay(0.99)', 6)]
    >>> memories(torch.optim.SGD([W], lr=0.1))
    []
    """
    found: dict[tuple[str, Remembered], list[tuple[Parameter, int]]] = defaultdict(list)
    for group, parameter, entries in _states(optimizer):
        declared = _declared(optimizer, group)
        for key, size in entries.items():
            said = declared.get(key) or _told(key, group, type(optimizer).__name__)
            found[key, said].append((parameter, size))
    names = _names(list(found), name)
    result = []
    for (key, said), held in found.items():
        serves = {id(parameter) for parameter, _ in held}
        before = [
            names[other]
            for other, others in found.items()
            if other[0] in said.after and any(id(parameter) in serves for parameter, _ in others)
        ]
        component = Component(
            name=names[key, said],
            level=Level(((level or Level(1)).period or 1) * said.period),
            memory=said.memory,
            rule=said.rule,
            context_flow=said.context_flow,
            parameters=sum(size for _, size in held),
            after=tuple(before),
            objective=said.objective,
            kind="moments",
        )
        result.append(Memory(component, tuple(parameter for parameter, _ in held)))
    return result


def _names(found: Sequence[tuple[str, Remembered]], name: str) -> dict[Any, str]:
    """Each by its key; those of one key with their rule, and with what they compress."""
    keys, rules = Counter(key for key, _ in found), Counter((key, said.rule) for key, said in found)
    names = {}
    for key, said in found:
        own = [said.rule] if keys[key] > 1 else []
        own += [said.context_flow] if rules[key, said.rule] > 1 else []
        names[key, said] = path(name, key) + (f" ({', '.join(own)})" if own else "")
    return names


def _declared(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any]
) -> Mapping[str, Remembered]:
    """What an optimizer says of itself, if it says anything."""
    says = getattr(optimizer, "remembered", None)
    return cast(Mapping[str, Remembered], says(group)) if callable(says) else {}


def _told(key: str, group: Mapping[str, Any], optimizer: str) -> Remembered:
    """What is known of an entry of one of torch's own optimizers."""
    _, flow, needs = _KNOWN.get(key, ("", GRADIENTS, ()))
    return Remembered(
        rule=_rule(key, group) or f"{key} of {optimizer}",
        context_flow=flow,
        objective="-<M, g^2>" if flow == SQUARES else "-<M, g>",
        after=needs,
    )


def _states(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[Mapping[str, Any], Parameter, dict[str, int]]]:
    """Group, parameter, and the size of every entry that is a memory."""
    asked: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if not parameter.requires_grad:
                continue
            shape = tuple(parameter.shape)
            state = optimizer.state.get(parameter)
            says = getattr(optimizer, "entries", None)
            if callable(says):
                entries = cast(dict[str, tuple[int, ...]], says(group, parameter.shape))
            elif state:
                entries = _entries(state, shape)
            else:
                kind = index, len(shape)
                if kind not in asked:
                    asked[kind] = _ask(optimizer, group, len(shape))
                entries = {key: _full(size, shape) for key, size in asked[kind].items()}
            yield group, parameter, {key: math.prod(size) for key, size in entries.items()}


def _entries(state: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of the entries that are memories; one number for a whole matrix is a clock."""
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if isinstance(value, Tensor) and key not in _CLOCKS and (value.ndim or not shape)
    }


def _stand_in(axes: int) -> tuple[int, ...]:
    return tuple(range(2, 2 + axes))


def _ask(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], axes: int
) -> dict[str, tuple[int, ...]]:
    """What the optimizer remembers of a parameter with so many axes: a copy takes one step."""
    parameter = Parameter(torch.zeros(_stand_in(axes)))
    parameter.grad = torch.ones_like(parameter)
    probe = copy.copy(optimizer)
    plain = {"fused": False, "foreach": False, "capturable": False}
    probe.param_groups = [
        {key: plain.get(key, value) for key, value in group.items()} | {"params": [parameter]}
    ]
    probe.state = defaultdict(dict)
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        probe.__dict__[hooks] = {}
    try:
        cast(Any, probe.step)()
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"optimizer: {type(optimizer).__name__} has not moved yet and cannot say what it will "
            f"remember ({error}): let it take one step first"
        ) from error
    return _entries(probe.state[parameter], _stand_in(axes))


def _full(size: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """From the stand-in's axes to those of the parameter."""
    axes = dict(zip(_stand_in(len(shape)), shape, strict=True))
    return tuple(axes.get(length, length) for length in size)


def _rule(key: str, group: Mapping[str, Any]) -> str:
    places, flow, _ = _KNOWN.get(key, ("", "", ()))
    if "maximum" in flow:
        return "maximum"
    for place in places.split():
        entry, _, index = place.partition(".")
        if entry in group:
            value = group[entry][int(index)] if index else group[entry]
            return f"DotProduct x Decay({float(value):g})"
    return "DotProduct x Keep" if key == "sum" else ""
