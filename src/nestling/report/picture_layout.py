"""Where everything stands in the picture of a nested system.

Downwards: periods on a log axis, from every token to never. To the right: memories that are carried
in the inner state, weights, and the optimizer's memories of their gradients. Rows that would touch
are moved apart; a line leads each row back to its place on the axis. Lengths are in pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from nestling.report.fold import Arrow, Box, Folded

AXIS = 76.0
"""Of the axis, from the left."""
LEFT = 236.0
TOP = 120.0
ORIGIN = TOP + 66
"""Of period 1, from the top: half a card below the first card's upper edge."""
DECADE = 92.0
GAP = 64.0
ROW_GAP = 78.0
PAD = 26.0
FIRST_ARC, ARC = 22.0, 11.0
"""Depth of the first line that goes around in a row, and between it and the next."""
LINE = 15.5
WRAP = 196.0


@dataclass(frozen=True)
class Card:
    """A box of the system and where it is drawn: ``x``, ``y`` of its upper left corner."""

    box: Box
    heading: str
    chips: tuple[str, ...]
    lines: tuple[str, ...]
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0

    @property
    def centre(self) -> float:
        """From the left."""
        return self.x + self.width / 2

    @property
    def middle(self) -> float:
        """From the top."""
        return self.y + self.height / 2


@dataclass(frozen=True)
class Row:
    """Everything of one period.

    Attributes:
        period: in tokens; ``None`` is never.
        tick: its place on the axis.
        middle: where its cards are.
    """

    period: int | None
    tick: float
    middle: float


@dataclass(frozen=True)
class Frame:
    """A gradient flow: the boxes that one backpropagation moves."""

    x: float
    y: float
    width: float
    height: float
    label: str
    weights: bool


@dataclass(frozen=True)
class Layout:
    """The whole picture."""

    cards: Mapping[str, Card]
    rows: tuple[Row, ...]
    frames: tuple[Frame, ...]
    never: float
    width: float
    height: float
    order: Mapping[str, int] = field(default_factory=dict)

    def frame_beside(self, card: Card) -> Frame | None:
        """The weights' flow at the height of a card of moments."""
        found = [f for f in self.frames if f.weights and f.y <= card.middle <= f.y + f.height]
        return found[0] if found else None


def lay_out(folded: Folded) -> Layout:
    """Place every box."""
    order = _order(folded)
    cards = {box.name: _card(box) for box in folded.boxes}
    periods = sorted({box.first.level.sort_key for box in folded.boxes})
    by_row = [
        _level_heights(cards[box.name] for box in folded.boxes
                       if box.first.level.sort_key == period)
        for period in periods
    ]  # fmt: skip
    rows, never = _rows(periods, by_row)
    carried = {
        box.name for box in folded.boxes if box.first.kind in ("in_context", "non_parametric")
    }
    placed: dict[str, Card] = {}
    middle_of = {period: row.middle for period, row in zip(periods, rows, strict=True)}
    trained = [[c for c in row if c.box.first.kind == "weights"] for row in by_row]
    side = [[c for c in row if c.box.name in carried] for row in by_row]
    within = [i for i, row in enumerate(trained) if row]  # the rows that the weights' frame covers
    span = range(within[0], within[-1] + 1) if within else range(0)
    beside = {card.box.name: card for i in span for card in side[i]}
    start = LEFT + PAD
    if beside:  # carried memories as slow as the weights stand left of their frame
        start += max(card.width for card in beside.values()) + GAP + PAD
    placed |= _columns(trained, _before(folded, order), order, start)
    above = [[] if i in span else row for i, row in enumerate(side)]
    placed |= _carried(above, placed, folded, order, LEFT + PAD)
    for i in span:
        placed |= _in_line(side[i], LEFT + PAD)
    edge = max((c.x + c.width for c in placed.values()), default=LEFT) + PAD + GAP
    for row in by_row:
        x = edge
        for card in (c for c in row if c.box.first.kind == "moments"):
            placed[card.box.name] = replace(card, x=x)
            x += card.width + GAP / 2
    placed = {
        name: replace(card, y=middle_of[card.box.first.level.sort_key] - card.height / 2)
        for name, card in placed.items()
    }
    frames = tuple(_frames(folded, placed))
    right = max([c.x + c.width for c in placed.values()] + [f.x + f.width for f in frames])
    bottom = max([c.y + c.height for c in placed.values()] + [f.y + f.height for f in frames])
    return Layout(placed, rows, frames, never, right + 40, max(bottom, never) + 30, order)


def _in_line(cards: Sequence[Card], x: float) -> dict[str, Card]:
    found = {}
    for card in cards:
        found[card.box.name] = replace(card, x=x)
        x += card.width + GAP
    return found


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """In pixels, in a wide font: no system's default is much wider."""
    return _measured(text, bold) * size / 100


@functools.lru_cache(maxsize=4096)
def _measured(text: str, bold: bool) -> float:
    font = FontProperties(family="DejaVu Sans", size=100, weight="bold" if bold else "normal")
    return TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]


def _card(box: Box) -> Card:
    first = box.first
    heading = {
        "in_context": "memory in context",
        "non_parametric": "memory without parameters",
        "weights": "trained weights" if first.level.period else "weights, held",
        "moments": f"memory of {'weights' if 'weights' in first.context_flow else 'gradients'}",
    }[first.kind]
    several = len(box.members) > 1 or first.kind == "moments"
    chips = box.labels if several else (first.name if not box.blocks else box.name,)
    if first.kind == "moments":
        lines = [f"{member.rule}: {member.context_flow}" for member in box.members]
    else:
        lines = [first.memory, first.rule]
    count = f"{first.parameters:,} numbers"
    if first.kind == "non_parametric":
        count += " for every token"
    if len({member.parameters for member in box.members}) == 1 and len(box.members) > 1:
        count = f"{len(box.members)} x {count}"
    wrapped = [piece for line in lines for piece in _wrapped(line)] + [count]
    head = text_width(heading, 10.5) + 34
    if box.blocks > 1:
        head += text_width(f"x {box.blocks} blocks", 10.5) + 14
    title = sum(text_width(chip, 13.0, bold=True) + 20 for chip in chips)
    width = max([head, title, *(text_width(line, 11.0) for line in wrapped)]) + 28
    height = (60 if len(chips) == 1 else 66) + LINE * len(wrapped)
    return Card(box, heading, chips, tuple(wrapped), width, height)


def _level_heights(cards: Iterable[Card]) -> list[Card]:
    """The cards of a row as high as the highest, so that lines between them are straight."""
    row = list(cards)
    highest = max(card.height for card in row)
    return [replace(card, height=highest) for card in row]


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if text_width(longer, 11.0) > WRAP and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _order(folded: Folded) -> dict[str, int]:
    """Boxes in the order in which a token meets them; what it never meets comes first."""
    kinds = {box.name: box.first.kind for box in folded.boxes}
    onward: dict[str, list[str]] = {box.name: [] for box in folded.boxes}
    for arrow in folded.arrows:
        ends = kinds[arrow.source], kinds[arrow.target]
        if arrow.kind == "conditioning" and not arrow.onward and "moments" not in ends:
            onward[arrow.source].append(arrow.target)
    starts = [box.name for box in folded.boxes if not box.blocks and onward[box.name]]
    met: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for following in reversed(onward[name]):
                visit(following)
            met.append(name)

    for name in starts or [name for name, following in onward.items() if following][:1]:
        visit(name)
    place = {name: float(index) for index, name in enumerate(reversed(met))}
    for arrow in folded.arrows:  # what a memory starts from stands next to it
        if arrow.kind == "initialisation" and arrow.target in seen - {arrow.source}:
            place.setdefault(arrow.source, place[arrow.target] + 0.5)
    names = sorted((box.name for box in folded.boxes), key=lambda name: place.get(name, -1.0))
    return {name: index for index, name in enumerate(names)}


def _before(folded: Folded, order: Mapping[str, int]) -> dict[str, str]:
    """The box that each one is conditioned on, of those met before it the last."""
    found: dict[str, str] = {}
    for arrow in folded.arrows:
        if arrow.kind == "conditioning" and order[arrow.source] < order[arrow.target]:
            known = found.get(arrow.target)
            if known is None or order[known] < order[arrow.source]:
                found[arrow.target] = arrow.source
    return found


def _rows(
    periods: Sequence[float], by_row: Sequence[Sequence[Card]]
) -> tuple[tuple[Row, ...], float]:
    rows: list[Row] = []
    before: set[str] = set()
    above = TOP - ROW_GAP
    for period, cards in zip(periods, by_row, strict=True):
        half = max(card.height for card in cards) / 2
        lowest = above + ROW_GAP + half
        kinds = {card.box.first.kind for card in cards}
        if "weights" in before - kinds:  # the frame of the weights ends between them
            lowest += ROW_GAP
        before = kinds
        if math.isinf(period):
            tick = max(lowest, _axis_end(rows) + 70)
            rows.append(Row(None, tick, tick))
        else:
            tick = tick_of(period)
            rows.append(Row(int(period), tick, max(tick, lowest)))
        above = rows[-1].middle + half
    if rows and rows[-1].period is None:
        return tuple(rows), rows[-1].tick
    return tuple(rows), max(_axis_end(rows) + 70, above)


def _axis_end(rows: Sequence[Row]) -> float:
    """Of the part of the axis that is to scale: a whole decade behind the slowest period."""
    slowest = max((row.period or 1 for row in rows), default=1)
    return tick_of(10 ** math.ceil(math.log10(max(slowest, 10))))


def tick_of(period: float | int) -> float:
    """Place of a period on the axis."""
    return ORIGIN + DECADE * math.log10(period)


def _columns(
    rows: Sequence[Sequence[Card]],
    before: Mapping[str, str],
    order: Mapping[str, int],
    start: float,
) -> dict[str, Card]:
    """Weights in columns: a slower level stands below the level that it follows."""
    column: dict[str, int] = {}
    for row in rows:
        taken: set[int] = set()
        for card in sorted(row, key=lambda card: order[card.box.name]):
            wish = column.get(before.get(card.box.name, ""), max(taken, default=-1) + 1)
            while wish in taken:
                wish += 1
            column[card.box.name] = wish
            taken.add(wish)
    cards = {card.box.name: card for row in rows for card in row}
    widths: dict[int, float] = {}
    for name, index in column.items():
        widths[index] = max(widths.get(index, 0.0), cards[name].width)
    left = {i: start + sum(w + GAP for j, w in widths.items() if j < i) for i in widths}
    return {
        name: replace(cards[name], x=left[i] + (widths[i] - cards[name].width) / 2)
        for name, i in column.items()
    }


def _carried(
    rows: Sequence[Sequence[Card]],
    placed: Mapping[str, Card],
    folded: Folded,
    order: Mapping[str, int],
    start: float,
) -> dict[str, Card]:
    """Carried memories above the weights that they deal with, none above another."""
    found: dict[str, Card] = {}
    edge = start
    for row in rows:
        cards = sorted(row, key=lambda card: (card.box.number, order[card.box.name]))
        names = {card.box.name for card in cards}
        around = [
            placed[other].centre
            for arrow in folded.arrows
            for one, other in ((arrow.source, arrow.target), (arrow.target, arrow.source))
            if one in names and other in placed
        ]
        whole = sum(card.width for card in cards) + GAP * (len(cards) - 1)
        x = max(edge, sum(around) / len(around) - whole / 2) if around else edge
        found |= _in_line(cards, x)
        edge = max([edge, *(c.x + c.width + GAP for c in found.values())])
    return found


def goes_around(arrow: Arrow, cards: Mapping[str, Card]) -> bool:
    """Whether an arrow within a row must go around: to the next block, or past another card."""
    one, other = cards[arrow.source], cards[arrow.target]
    level = one.box.first.level
    if arrow.source == arrow.target or other.box.first.level != level:
        return False
    low, high = sorted((one.centre, other.centre))
    between = any(low < c.centre < high for c in cards.values() if c.box.first.level == level)
    return arrow.onward or between


def _frames(folded: Folded, placed: Mapping[str, Card]) -> Iterable[Frame]:
    weights = {box.name for box in folded.boxes if box.first.kind == "weights"}
    for flow in folded.flows:
        cards = [placed[name] for name in flow]
        pad, low, label = 9.0, 9.0, ""
        if len(cards) > 1 or flow[0] in weights:
            pad = low = PAD
            label = f"one gradient flow, objective {cards[-1].box.first.objective}"
        if flow[0] in weights:  # room for the lines below the slowest level, and for the label
            last = max(card.box.first.level.sort_key for card in cards)
            arcs = [
                arrow
                for arrow in folded.arrows
                if {arrow.source, arrow.target} <= weights
                and placed[arrow.source].box.first.level.sort_key == last
                and goes_around(arrow, placed)
            ]
            low += ARC * len(arcs) + (FIRST_ARC if arcs else 0.0)
        x, y = min(c.x for c in cards) - pad, min(c.y for c in cards) - pad
        right = max(c.x + c.width for c in cards) + pad
        bottom = max(c.y + c.height for c in cards) + low
        yield Frame(x, y, right - x, bottom - y, label, flow[0] in weights)
