"""A model and its training as one system of components, ordered by update frequency (NL Def. 3-4).

Every part that holds something over time declares itself as a :class:`Component`: recurrent
memories, blocks of weights, and the moments of the optimizer alike. This module only orders them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from nestling.levels.level import Level


@dataclass(frozen=True, kw_only=True)
class Component:
    """One associative memory of the system.

    Attributes:
        name: path inside the model, for example ``blocks.0.mixer.memory``.
        level: how often it is updated.
        memory: what it is ("MLP 32-32-32 x 4 heads").
        rule: how it is written ("L2 x Delta(Decay)", "AdamW").
        context_flow: what it compresses ("tokens", "gradients").
        parameters: numbers it holds, per sequence for recurrent states.
        after: names of components of the same frequency whose state at t it needs at t; they
            come first (second case of NL Def. 2).
    """

    name: str
    level: Level
    memory: str
    rule: str
    context_flow: str
    parameters: int
    after: tuple[str, ...] = ()


def ordered(components: Iterable[Component]) -> list[Component]:
    """Components from the fastest to the slowest (NL Def. 2), stable among equals.

    Of two components with one period, the one whose state the other needs comes first.

    >>> slow = Component(name="W", level=Level(None), memory="", rule="", context_flow="",
    ...                  parameters=1)
    >>> fast = Component(name="M", level=Level(1), memory="", rule="", context_flow="",
    ...                  parameters=1)
    >>> [c.name for c in ordered([slow, fast])]
    ['M', 'W']
    """
    items = list(components)
    depth: dict[str, int] = {}
    by_name = {item.name: item for item in items}

    def rank(item: Component, seen: tuple[str, ...] = ()) -> int:
        if item.name in seen:
            raise ValueError(f"components: {item.name!r} depends on itself")
        if item.name not in depth:
            needed = [by_name[name] for name in item.after if name in by_name]
            same = [n for n in needed if n.level.sort_key == item.level.sort_key]
            depth[item.name] = 1 + max((rank(n, (*seen, item.name)) for n in same), default=-1)
        return depth[item.name]

    return sorted(items, key=lambda item: (item.level.sort_key, rank(item)))


def level_numbers(components: Iterable[Component]) -> dict[str, int]:
    """Level of each component, 1 being the fastest; equal frequency and independent: same level.

    >>> a = Component(name="m", level=Level(8), memory="", rule="", context_flow="", parameters=1)
    >>> b = Component(name="v", level=Level(8), memory="", rule="", context_flow="", parameters=1)
    >>> level_numbers([a, b])
    {'m': 1, 'v': 1}
    """
    items = ordered(components)
    numbers: dict[str, int] = {}
    number, previous = 0, None
    for item in items:
        blocked = any(numbers.get(name) == number for name in item.after)
        if previous is None or item.level.sort_key != previous or blocked:
            number += 1
        numbers[item.name] = number
        previous = item.level.sort_key
    return numbers
