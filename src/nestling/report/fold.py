"""A nested system as few boxes: what repeats itself, or differs in nothing but its name, is one.

Blocks of one kind become one block, "x 12"; components of one level with the same memory, rule and
transfers, as the generators of a self-modifying layer, become one box with several names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import get_args

from nestling.levels import Component, NestedSystem, Transfer, TransferKind


@dataclass(frozen=True)
class Box:
    """Components that are drawn as one.

    Attributes:
        name: unique among the boxes.
        members: the components, those of the first block where blocks are folded.
        number: their level, 1 being the fastest; the lowest, where folded blocks differ.
        blocks: how many blocks have them; 0 for what is in none.
    """

    name: str
    members: tuple[Component, ...]
    number: int
    blocks: int = 0

    @property
    def first(self) -> Component:
        """What the members have in common."""
        return self.members[0]

    @property
    def title(self) -> str:
        """All members in a few words: ``mixer.k, v, eta, alpha``."""
        head = self.name.split(", ")[0]
        return ", ".join([head, *self.labels[1:]])

    @property
    def labels(self) -> tuple[str, ...]:
        """The members' own names, without what the box's name already says."""
        return tuple(member.name.rpartition(".")[2] for member in self.members)


@dataclass(frozen=True)
class Arrow:
    """Transfers of one kind between two boxes.

    Attributes:
        kind: as in :class:`~nestling.levels.Transfer`.
        source, target: names of boxes.
        onward: whether it leads from one block to another that is folded with it.
    """

    kind: str
    source: str
    target: str
    onward: bool = False


@dataclass(frozen=True)
class Folded:
    """Boxes, fastest first, arrows, and the gradient flows as names of boxes."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    flows: tuple[tuple[str, ...], ...]

    def __getitem__(self, name: str) -> Box:
        return next(box for box in self.boxes if box.name == name)


def folded_transfers(folded: Folded) -> list[tuple[str, str, str]]:
    """Kind, source and targets in words, kind by kind.

    >>> from nestling.levels import Level
    >>> k = Component(name="a.k", level=Level(), memory="", rule="", context_flow="", parameters=1)
    >>> makes = (Transfer("generation", "W", "a.k"), Transfer("generation", "W", "a.v"))
    >>> parts = (k, replace(k, name="a.v"), replace(k, name="W", kind="weights"))
    >>> system = NestedSystem(parts, makes)
    >>> folded_transfers(fold(system))
    [('generation', 'W', 'a.k, v')]
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for arrow in folded.arrows:
        target = folded[arrow.target].title + (" (next block)" if arrow.onward else "")
        found[arrow.kind, folded[arrow.source].title].append(target)
    ranks = {kind: rank for rank, kind in enumerate(get_args(TransferKind))}
    lines = [(kind, source, "; ".join(targets)) for (kind, source), targets in found.items()]
    return sorted(lines, key=lambda line: ranks[line[0]])


def fold(system: NestedSystem) -> Folded:
    """The boxes of a system.

    >>> from nestling.models import build
    >>> system = NestedSystem(tuple(build("titans", width=16, heads=2, layers=3).components()))
    >>> [(box.name, box.blocks) for box in fold(system).boxes]
    [('mixer.memory', 3), ('mixer.weights', 3), ('mixer.initial', 3),
     ('continuum.levels.0', 3), ('embedding', 0)]
    """
    place = _places(system.components)
    shown: dict[str, list[Component]] = defaultdict(list)
    for component in system.components:
        shown[place[component.name].key].append(component)
    arrows = {
        (t.kind, place[t.source].key, place[t.target].key, _onward(place, t)): None
        for t in system.transfers
    }
    alike = _alike(system, shown, list(arrows))
    numbers = system.numbers
    boxes, name_of = [], {}
    for keys in alike:
        name = ", ".join(keys)
        name_of |= dict.fromkeys(keys, name)
        members = tuple(shown[key][0] for key in keys)
        everyone = [component for key in keys for component in shown[key]]
        boxes.append(
            Box(
                name=name,
                members=members,
                number=min(numbers[component.name] for component in everyone),
                blocks=len(shown[keys[0]]) if place[members[0].name].index is not None else 0,
            )
        )
    found = {
        Arrow(kind, name_of[source], name_of[target], onward): None
        for kind, source, target, onward in arrows
    }
    flows = {
        tuple(dict.fromkeys(name_of[place[name].key] for name in flow)): None
        for flow in system.gradient_flows
    }
    return Folded(tuple(boxes), tuple(found), tuple(flows))


@dataclass(frozen=True)
class _Place:
    """Where a component is drawn: its key, and its block's index if blocks are folded."""

    key: str
    index: int | None = None


def _places(components: Iterable[Component]) -> dict[str, _Place]:
    blocks: dict[tuple[str, int], dict[str, Component]] = defaultdict(dict)
    found, single = {}, set()
    for component in components:
        found[component.name] = _Place(component.name)
        where, index, rest = _split(component.name)
        if rest:
            blocks[where, index][rest] = component
        else:
            single.add(where)  # not a list of blocks: its members are components themselves
    # Blocks of one kind have the same components but for their names.
    kinds: dict[tuple[str, frozenset[object]], list[int]] = defaultdict(list)
    for (where, index), parts in blocks.items():
        content = frozenset(
            (rest, replace(c, name="", after=(), weights=(), transfers=()))
            for rest, c in parts.items()
        )
        if where not in single:
            kinds[where, content].append(index)
    for (where, _), indices in kinds.items():
        parts = blocks[where, indices[0]]
        short = len(kinds) == 1 and not parts.keys() & found.keys()
        for index in indices:
            for rest, component in blocks[where, index].items():
                key = rest if short else f"{where}.{indices[0]}.{rest}"
                found[component.name] = _Place(key, index)
    return found


def _split(name: str) -> tuple[str, int, str]:
    """List, index in it and the rest of a name; the rest is empty outside of lists."""
    parts = name.split(".")
    for place, part in enumerate(parts[1:], start=1):
        if part.isdecimal():
            return ".".join(parts[:place]), int(part), ".".join(parts[place + 1 :])
    return name, 0, ""


def _onward(place: dict[str, _Place], transfer: Transfer) -> bool:
    source, target = place[transfer.source].index, place[transfer.target].index
    return source is not None and target is not None and source != target


_Link = tuple[str, str, str, bool]


def _alike(
    system: NestedSystem, shown: dict[str, list[Component]], links: list[_Link]
) -> list[tuple[str, ...]]:
    """Keys of what is drawn as one box, in the order of the system."""
    numbers = system.numbers
    candidates: dict[object, list[str]] = defaultdict(list)
    for key, components in shown.items():
        one = components[0]
        common: tuple[object, ...] = (one.memory, one.rule, one.context_flow, one.parameters)
        if one.kind == "moments":
            common = (one.name.rpartition(".")[0],)
        elif one.kind != "in_context":
            common = (key,)
        candidates[one.kind, numbers[one.name], one.level, *common].append(key)
    found = []
    for keys in candidates.values():
        by_links: dict[object, list[str]] = defaultdict(list)
        for key in keys:
            outside = frozenset(
                (kind, source == key, target if source == key else source, onward)
                for kind, source, target, onward in links
                if (source == key) != (target == key)
                and (target if source == key else source) not in keys
            )
            by_links[outside].append(key)
        for same in by_links.values():
            found += [tuple(same)] if _symmetric(same, links) else [(key,) for key in same]
    order = {key: index for index, key in enumerate(shown)}
    return sorted(found, key=lambda keys: order[keys[0]])


def _symmetric(keys: list[str], links: list[_Link]) -> bool:
    """Whether each of them gives to all others what it gives to one."""
    pairs: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for kind, source, target, _ in links:
        if source in keys and target in keys and source != target:
            pairs[kind].add((source, target))
    return all(len(found) == len(keys) * (len(keys) - 1) for found in pairs.values())
