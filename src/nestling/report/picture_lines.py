"""The lines of the picture: which side of a card a transfer leaves from, and its way to the next.

Lines lie behind the cards. What leaves one side of a card is spread over it in the order of where
it goes, so that lines that start together do not cross.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from nestling.report.fold import Arrow, Folded
from nestling.report.picture_layout import ARC, FIRST_ARC, GAP, Card, Layout, goes_around

SPREAD = 0.74
"""Share of a side that lines may start from."""


@dataclass(frozen=True)
class Line:
    """One transfer as drawn.

    Attributes:
        kind: of the transfer.
        path: SVG path data, from source to target.
        onward: whether it leads to the next block.
        middle: a point on it, for a word.
    """

    kind: str
    path: str
    onward: bool
    middle: tuple[float, float]


@dataclass(frozen=True)
class _Way:
    """Sides that a line leaves and enters by; ``arc`` for one that goes around in its row."""

    arrow: Arrow
    leave: str
    enter: str


def route(folded: Folded, layout: Layout) -> list[Line]:
    """Every transfer; those between weights and their moments are one line for each kind."""
    cards = layout.cards
    ways, found = [], []
    for arrow in folded.arrows:
        source, target = cards[arrow.source], cards[arrow.target]
        if "moments" in (source.box.first.kind, target.box.first.kind):
            continue
        if arrow.source == arrow.target:
            found.append(_loop(arrow, source))
        else:
            ways.append(_Way(arrow, *_sides(source, target, arrow, layout)))
    ports = _ports(ways, layout)
    depths = _depths(ways, layout)
    for index, way in enumerate(ways):
        ends = ports[index, "leave"], ports[index, "enter"]
        found.append(_line(way, *ends, depths.get(index, FIRST_ARC)))
    return found + list(_moments(folded, layout))


def _sides(source: Card, target: Card, arrow: Arrow, layout: Layout) -> tuple[str, str]:
    if source.box.first.level == target.box.first.level:
        if goes_around(arrow, layout.cards):
            return "bottom", "bottom"
        return ("right", "left") if source.x < target.x else ("left", "right")
    down = source.y < target.y
    upper, lower = (source, target) if down else (target, source)
    lanes = {card.box.first.kind == "weights" for card in (upper, lower)}
    apart = abs(upper.centre - lower.centre) > (upper.width + lower.width) / 4
    if len(lanes) == 1 and apart:
        sides = ("bottom", "left" if upper.centre < lower.centre else "right")
    elif len(lanes) == 1 and _crossed(upper, lower, layout):
        sides = ("left", "left")
    else:
        sides = ("bottom", "top")
    return sides if down else (sides[1], sides[0])


def _crossed(upper: Card, lower: Card, layout: Layout) -> bool:
    """Whether another card stands between two of one column."""
    return any(
        upper.middle < card.middle < lower.middle
        and abs(card.centre - upper.centre) < (card.width + upper.width) / 2
        for card in layout.cards.values()
    )


def _ports(ways: list[_Way], layout: Layout) -> dict[tuple[int, str], tuple[float, float, str]]:
    """Where each line touches its two cards."""
    sides: dict[tuple[str, str], list[tuple[tuple[float, ...], int, str]]] = defaultdict(list)
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(way.arrow.kind for way in ways))}
    for index, way in enumerate(ways):
        names = {"leave": way.arrow.source, "enter": way.arrow.target}
        for end, other in (("leave", "enter"), ("enter", "leave")):
            side = getattr(way, end)
            one, far = layout.cards[names[end]], layout.cards[names[other]]
            key = _key(side, getattr(way, other), one, far)
            tie = kinds[way.arrow.kind] * _turn(side, getattr(way, other), one, far)
            sides[names[end], side].append(((*key, tie), index, end))
    found = {}
    for (name, side), entries in sides.items():
        card = layout.cards[name]
        for place, (_, index, end) in enumerate(sorted(entries)):
            share = 0.5 + SPREAD * ((place + 0.5) / len(entries) - 0.5)
            if side in ("top", "bottom"):
                y = card.y if side == "top" else card.y + card.height
                found[index, end] = (card.x + share * card.width, y, side)
            else:
                x = card.x if side == "left" else card.x + card.width
                found[index, end] = (x, card.y + share * card.height, side)
    return found


def _depths(ways: list[_Way], layout: Layout) -> dict[int, float]:
    """How far down the lines go that go around in a row: the longer, the farther."""
    rows: dict[object, list[tuple[float, int]]] = defaultdict(list)
    for index, way in enumerate(ways):
        if way.leave == way.enter == "bottom":
            one, other = layout.cards[way.arrow.source], layout.cards[way.arrow.target]
            rows[one.box.first.level].append((abs(one.centre - other.centre), index))
    return {
        index: FIRST_ARC + ARC * place
        for arcs in rows.values()
        for place, (_, index) in enumerate(sorted(arcs))
    }


def _turn(side: str, other: str, one: Card, far: Card) -> int:
    """-1 where lines between the same two cards must change their order, to lie in each other."""
    if side == other:
        upright = side in ("left", "right")
        return -1 if (one.middle > far.middle if upright else one.centre > far.centre) else 1
    return -1 if side == "left" and other in ("top", "bottom") else 1


def _key(side: str, other: str, one: Card, far: Card) -> tuple[float, ...]:
    """What the lines of one side are sorted by."""
    upright = side in ("left", "right")
    if other == side:  # an arc: the farther its end, the farther out
        ahead = far.middle - one.middle if upright else far.centre - one.centre
        return (1.0, -ahead) if ahead > 0 else (-1.0, -ahead)
    if upright and other in ("top", "bottom"):  # round a corner: the nearer its end, the higher
        return (1.0, abs(far.centre - one.centre) * (1 if far.middle < one.middle else -1))
    return (0.0, far.middle if upright else far.centre)


def _line(
    way: _Way,
    start: tuple[float, float, str],
    end: tuple[float, float, str],
    depth: float,
) -> Line:
    (x1, y1, leave), (x2, y2, enter) = start, end
    upright = {"top": (0, -1), "bottom": (0, 1), "left": (-1, 0), "right": (1, 0)}
    (ax, ay), (bx, by) = upright[leave], upright[enter]
    if leave == enter:
        first = second = depth / 0.75
    elif ax and bx:
        first = second = abs(x2 - x1) / 2
    elif ay and by:
        first = second = abs(y2 - y1) * 0.5
    else:
        first = (abs(x2 - x1) if ax else abs(y2 - y1)) * 0.62
        second = (abs(x2 - x1) if bx else abs(y2 - y1)) * 0.62
    c1, c2 = (x1 + ax * first, y1 + ay * first), (x2 + bx * second, y2 + by * second)
    middle = tuple(
        (a + 3 * b + 3 * c + d) / 8
        for a, b, c, d in ((x1, c1[0], c2[0], x2), (y1, c1[1], c2[1], y2))
    )
    path = f"M{x1:.1f},{y1:.1f} C{c1[0]:.1f},{c1[1]:.1f} {c2[0]:.1f},{c2[1]:.1f} {x2:.1f},{y2:.1f}"
    return Line(way.arrow.kind, path, way.arrow.onward, (middle[0], middle[1]))


def _loop(arrow: Arrow, card: Card) -> Line:
    x, y = card.x + card.width - 74, card.y
    path = (
        f"M{x:.1f},{y:.1f} C{x - 8:.1f},{y - 38:.1f} {x + 52:.1f},{y - 38:.1f} {x + 44:.1f},{y:.1f}"
    )
    return Line(arrow.kind, path, arrow.onward, (x + 22, y - 30))


def _moments(folded: Folded, layout: Layout) -> Iterator[Line]:
    """Between the flow of the weights and the moments beside it, once for each kind."""
    seen: dict[tuple[str, str, bool], None] = {}
    for arrow in folded.arrows:
        for name, made in ((arrow.target, True), (arrow.source, False)):
            if layout.cards[name].box.first.kind == "moments":
                seen[name, arrow.kind, made] = None
    for name, kind, made in seen:
        card = layout.cards[name]
        frame = layout.frame_beside(card)
        from_x = frame.x + frame.width if frame else card.x - GAP
        y = card.middle + (-14 if made else 14)
        x1, x2 = (from_x, card.x) if made else (card.x, from_x)
        yield Line(kind, f"M{x1:.1f},{y:.1f} L{x2:.1f},{y:.1f}", False, ((x1 + x2) / 2, y))
