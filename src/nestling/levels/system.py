"""A model and its training as one system of components, ordered by update frequency (NL Def. 3-4).

    A before B  if  f_A > f_B,  or  f_A = f_B and B's state at t needs A's at t        NL Def. 2

Components say themselves what they are and how knowledge moves between them (``component.py``).
This module only orders them, checks that they fit together, and writes them down as JSON.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nestling.levels.component import Component, Transfer
from nestling.levels.level import Level

SCHEMA = 1
"""Version of what :meth:`NestedSystem.to_dict` writes."""


@dataclass(frozen=True)
class NestedSystem:
    """Components from the fastest to the slowest, and the knowledge that moves between them.

    Args:
        components: in any order; they are ordered by NL Def. 2.
        transfers: between components, by name; repeated ones count once. Those that the
            components declare themselves are added.

    Raises:
        ValueError: if a name comes twice, a transfer or ``after`` names no component, or
            components of one period wait for each other in a circle.

    >>> W = Component(name="W", level=Level(512), memory="", rule="", context_flow="", parameters=1)
    >>> M = dataclasses.replace(W, name="M", level=Level(1),
    ...                         transfers=(Transfer("initialisation", "W", "M"),))
    >>> system = NestedSystem((W, M))
    >>> [[part.name for part in level] for level in system.levels]
    [['M'], ['W']]
    >>> NestedSystem.from_dict(system.to_dict()) == system
    True
    """

    components: tuple[Component, ...]
    transfers: tuple[Transfer, ...] = ()

    def __post_init__(self) -> None:
        counts = Counter(component.name for component in self.components)
        twice = [name for name, times in counts.items() if times > 1]
        if twice:
            raise ValueError(f"components: {twice[0]!r} comes twice")
        for component in self.components:
            for name in component.after:
                if name not in counts:
                    raise ValueError(
                        f"components: {component.name!r} comes after {name!r}, which is none of "
                        f"the {len(counts)} components"
                    )
        declared = [t for component in self.components for t in component.transfers]
        transfers = tuple(dict.fromkeys([*self.transfers, *declared]))
        for transfer in transfers:
            for end in ("source", "target"):
                name = getattr(transfer, end)
                if name not in counts:
                    raise ValueError(
                        f"transfers: the {end} {name!r} of {transfer} is none of the "
                        f"{len(counts)} components"
                    )
        plain = [dataclasses.replace(component, transfers=()) for component in self.components]
        object.__setattr__(self, "components", tuple(ordered(plain)))
        object.__setattr__(self, "transfers", transfers)

    @property
    def numbers(self) -> dict[str, int]:
        """Level of each component by name, 1 being the fastest (NL Def. 4)."""
        return level_numbers(self.components)

    @property
    def levels(self) -> tuple[tuple[Component, ...], ...]:
        """The components level by level, fastest first."""
        numbers = self.numbers
        found: dict[int, list[Component]] = {}
        for component in self.components:
            found.setdefault(numbers[component.name], []).append(component)
        return tuple(tuple(level) for level in found.values())

    @property
    def gradient_flows(self) -> tuple[tuple[str, ...], ...]:
        """Names of the components that one gradient moves, flow by flow (NL Def. 3, 3.3).

        A memory that minimises an objective of its own is a flow by itself. Memories in context
        that errors reach through each other move together, and so do all the weights that are
        trained: what trains them backpropagates one loss. Weights that never move, caches and the
        moments of an optimizer, which gradients write and no error reaches, are in none.
        """
        root = {component.name: component.name for component in self.components}

        def find(name: str) -> str:
            while root[name] != name:
                name = root[name]
            return name

        back = [t for t in self.transfers if t.kind == "backpropagation"]
        for transfer in back:
            root[find(transfer.source)] = find(transfer.target)
        reached = {transfer.target for transfer in back}
        found: dict[tuple[str, str], list[str]] = {}
        for component in self.components:
            name, kind = component.name, component.kind
            if kind not in ("in_context", "weights") or component.level.period is None:
                continue
            key = "loss" if kind == "weights" else find(name) if name in reached else name
            found.setdefault((kind, key), []).append(name)
        return tuple(tuple(names) for names in found.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``level`` is derived and there for readers."""
        numbers = self.numbers
        parts = []
        for component in self.components:
            values = {f.name: getattr(component, f.name) for f in dataclasses.fields(component)}
            del values["level"], values["transfers"]
            values |= {key: list(values[key]) for key in ("after", "weights")}
            parts.append(
                {"level": numbers[component.name], "period": component.level.period, **values}
            )
        return {
            "schema": SCHEMA,
            "components": parts,
            "transfers": [dataclasses.asdict(transfer) for transfer in self.transfers],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NestedSystem:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: naming the entry and the field, if one is missing, unknown or of another
                type, or if a ``level`` is not what the periods and ``after`` make it.
        """
        _expect_fields(values, {"schema": int, "components": list, "transfers": list}, "system")
        if values["schema"] != SCHEMA:
            raise ValueError(f"system: expected schema {SCHEMA}, got {values['schema']!r}")
        components = [_component(v, f"components[{i}]") for i, v in enumerate(values["components"])]
        transfers = []
        for index, entry in enumerate(values["transfers"]):
            _expect_fields(entry, _TRANSFER, f"transfers[{index}]")
            transfers.append(Transfer(**entry))
        system = cls(tuple(components), tuple(transfers))
        numbers = system.numbers
        for entry in values["components"]:
            if entry["level"] != numbers[entry["name"]]:
                raise ValueError(
                    f"components: {entry['name']!r} is at level {numbers[entry['name']]}, "
                    f"got {entry['level']}"
                )
        return system


_TRANSFER = {"kind": str, "source": str, "target": str}
_COMPONENT = {
    **dict.fromkeys(("name", "memory", "rule", "context_flow", "objective", "kind"), str),
    **dict.fromkeys(("level", "parameters"), int),
    **dict.fromkeys(("after", "weights"), list),
    "period": int | None,
}


def _expect_fields(values: Any, types: Mapping[str, Any], where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected an object, got {values!r}")
    wrong = sorted(set(values) ^ set(types))
    if wrong:
        what = "unknown" if wrong[0] in values else "missing"
        raise ValueError(f"{where}: {what} field {wrong[0]!r}")
    for name, expected in types.items():
        value = values[name]
        if not isinstance(value, expected) or isinstance(value, bool):
            raise ValueError(f"{where}: {name}: expected {expected}, got {value!r}")


def _component(values: Any, where: str) -> Component:
    _expect_fields(values, _COMPONENT, where)
    for key in ("after", "weights"):
        if not all(isinstance(name, str) for name in values[key]):
            raise ValueError(f"{where}: {key}: expected names, got {values[key]!r}")
    rest: dict[str, Any] = {k: v for k, v in values.items() if k not in ("level", "period")}
    rest |= {key: tuple(values[key]) for key in ("after", "weights")}
    return Component(level=Level(values["period"]), **rest)


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
