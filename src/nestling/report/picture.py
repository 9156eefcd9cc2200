"""The picture of a nested system as SVG text: gradient flows, transfers, periods on a log axis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from nestling.levels import NestedSystem
from nestling.report.figures import FAINT, FONTS, GRID, INK
from nestling.report.fold import Folded, fold
from nestling.report.picture_layout import (
    AXIS,
    LEFT,
    LINE,
    TOP,
    Card,
    Frame,
    Layout,
    Row,
    lay_out,
    text_width,
    tick_of,
)
from nestling.report.picture_lines import route

# Okabe and Ito's colours; the two that often go beside each other also differ by their dashes.
STYLES: dict[str, tuple[str, str, str]] = {
    "conditioning": ("#0072B2", "", "computes with its output"),
    "non_parametric": ("#CC79A7", "", "computes with what a cache keeps"),
    "backpropagation": ("#D55E00", "7 4", "an error comes back"),
    "initialisation": ("#009E73", "", "starts from what was learned"),
    "generation": ("#E69F00", "", "makes keys, values, steps or gradients"),
}
WORDS = {"non_parametric": "non-parametric conditioning"}
FLOW, FLOW_EDGE = "#eef3f8", "#b8c6d6"


def picture(system: NestedSystem, *, title: str) -> str:
    """The system as one SVG image.

    Args:
        system: model and training.
        title: above the picture.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=2)
    >>> svg = picture(NestedSystem(tuple(model.components())), title="a Transformer")
    >>> svg.startswith("<svg"), "mixer.memory" in svg, "x 2 blocks" in svg
    (True, True, True)
    """
    folded = fold(system)
    layout = lay_out(folded)
    kinds = [kind for kind in STYLES if any(arrow.kind == kind for arrow in folded.arrows)]
    legend = _legend(kinds, layout.height + 14)
    width, height = max(layout.width, 1180.0), layout.height + 56
    subtitle = (
        f"{len(system.components)} components on {len(system.levels)} levels; "
        "every shaded box is one gradient flow"
    )
    body = [
        *_heading(title, subtitle),
        *_axis(layout, width),
        *(_frame(frame) for frame in layout.frames),
        *_lines(folded, layout),
        *(piece for card in layout.cards.values() for piece in _card(card)),
        *legend,
    ]
    style = f"font-family: {', '.join(FONTS)}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img" style="{style}">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
            *_markers(kinds),
            *body,
            "</svg>\n",
        ]
    )


def _heading(title: str, subtitle: str) -> list[str]:
    return [
        _text(title, 28.0, 40.0, size=19.0, bold=True),
        _text(subtitle, 28.0, 62.0, size=12.0, colour=FAINT),
    ]


def _axis(layout: Layout, width: float) -> Iterator[str]:
    """The log axis, each row's place on it, and a line that leads the eye."""
    yield _text("update period", 28.0, TOP - 24, size=11.0, bold=True)
    yield _text("in tokens", 28.0, TOP - 9, size=11.0, colour=FAINT)
    scaled = [row for row in layout.rows if row.period is not None]
    decades = math.ceil(math.log10(max([row.period or 1 for row in scaled] + [10])))
    end = tick_of(10**decades)
    yield _stroke(f"M{AXIS},{tick_of(1):.1f} L{AXIS},{end + 12:.1f}", INK, 1.2)
    for place in range(decades + 1):
        y = tick_of(10**place)
        yield _stroke(f"M{AXIS - 5},{y:.1f} L{AXIS},{y:.1f}", INK, 1.2)
        yield _text(f"{10**place:,}", AXIS - 10, y + 4, size=11.0, anchor="end")
        for digit in range(2, 10) if place < decades else ():
            y = tick_of(digit * 10**place)
            yield _stroke(f"M{AXIS - 3},{y:.1f} L{AXIS},{y:.1f}", FAINT, 0.8)
    yield _stroke(f"M{AXIS},{end + 16:.1f} L{AXIS},{layout.never:.1f}", INK, 1.2, dash="2 5")
    yield _stroke(f"M{AXIS - 5},{layout.never:.1f} L{AXIS},{layout.never:.1f}", INK, 1.2)
    yield _text("never", AXIS - 10, layout.never + 4, size=11.0, anchor="end")
    for row in layout.rows:
        yield from _row(row, width)


def _row(row: Row, width: float) -> Iterator[str]:
    y, near = row.middle, LEFT - 118
    bend = f"C{AXIS + 22},{row.tick:.1f} {near - 26},{y:.1f} {near - 6},{y:.1f}"
    yield _stroke(f"M{AXIS},{row.tick:.1f} {bend}", FAINT, 1.0)
    yield f'<circle cx="{AXIS}" cy="{row.tick:.1f}" r="3.5" fill="{INK}"/>'
    label = {None: "never", 1: "every token"}.get(row.period, f"every {row.period or 0:,}")
    yield _text(label, near, y + 4, size=11.5, bold=True)
    line = near + text_width(label, 11.5, bold=True) + 8
    yield _stroke(f"M{line:.1f},{y:.1f} L{width - 30:.1f},{y:.1f}", GRID, 1.0)


def _frame(frame: Frame) -> str:
    box = (
        f'<rect x="{frame.x:.1f}" y="{frame.y:.1f}" width="{frame.width:.1f}" '
        f'height="{frame.height:.1f}" rx="14" fill="{FLOW}" stroke="{FLOW_EDGE}"/>'
    )
    if not frame.label:
        return box
    x, y, anchor = frame.x + frame.width - 16, frame.y + 18, "end"
    if frame.weights:
        x, y, anchor = frame.x + 16, frame.y + frame.height - 12, "start"
    return box + _text(frame.label, x, y, size=11.5, colour="#52616f", italic=True, anchor=anchor)


def _card(card: Card) -> Iterator[str]:
    box = card.box
    yield (
        f'<rect x="{card.x:.1f}" y="{card.y:.1f}" width="{card.width:.1f}" '
        f'height="{card.height:.1f}" rx="9" fill="#ffffff" stroke="{INK}" stroke-width="1.1"/>'
    )
    x, y = card.x + 14, card.y + 21
    yield f'<circle cx="{card.x + 22:.1f}" cy="{y - 3.5:.1f}" r="10" fill="{INK}"/>'
    yield _text(str(box.number), card.x + 22, y + 0.5, size=11.0, bold=True, colour="#ffffff",
                anchor="middle")  # fmt: skip
    yield _text(card.heading, x + 26, y, size=10.5, colour=FAINT)
    if box.blocks > 1:
        yield _text(f"x {box.blocks} blocks", card.x + card.width - 14, y, size=10.5, anchor="end")
    y += 23
    for chip in card.chips:
        wide = text_width(chip, 13.0, bold=True)
        if len(card.chips) > 1:
            yield (
                f'<rect x="{x:.1f}" y="{y - 14:.1f}" width="{wide + 12:.1f}" height="19.5" rx="5" '
                f'fill="{FLOW}" stroke="{FLOW_EDGE}"/>'
            )
            yield _text(chip, x + 6, y, size=13.0, bold=True)
        else:
            yield _text(chip, x, y, size=13.0, bold=True)
        x += wide + 20
    for index, line in enumerate(card.lines):
        last = index + 1 == len(card.lines)
        yield _text(
            line, card.x + 14, y + 20 + LINE * index, size=11.0, colour=FAINT if last else INK
        )


def _lines(folded: Folded, layout: Layout) -> Iterator[str]:
    words = []
    for line in route(folded, layout):
        colour, dash, _ = STYLES[line.kind]
        dash = "1 5" if line.onward else dash
        yield (
            f'<path d="{line.path}" fill="none" stroke="{colour}" stroke-width="1.7" '
            f'stroke-dasharray="{dash or "none"}" stroke-linecap="round" '
            f'marker-end="url(#to-{line.kind})"/>'
        )
        if line.onward and line.kind == "conditioning":
            words.append(line.middle)
    for x, y in words:
        yield _text("next block", x, y + 4, size=10.5, anchor="middle", halo=True,
                    colour=STYLES["conditioning"][0])  # fmt: skip


def _legend(kinds: list[str], top: float) -> Iterator[str]:
    x, y = 28.0, top
    for kind in kinds:
        colour, dash, meaning = STYLES[kind]
        word = WORDS.get(kind, kind)
        yield (
            f'<path d="M{x:.1f},{y:.1f} l34,0" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash or "none"}" marker-end="url(#to-{kind})"/>'
        )
        yield _text(word, x + 46, y + 4, size=12.0, bold=True)
        yield _text(meaning, x + 46, y + 20, size=11.0, colour=FAINT)
        x += 46 + max(text_width(word, 12.0, bold=True), text_width(meaning, 11.0)) + 34


def _markers(kinds: list[str]) -> Iterator[str]:
    yield "<defs>"
    for kind in kinds:
        yield (
            f'<marker id="to-{kind}" viewBox="0 0 10 10" refX="8.5" refY="5" markerWidth="9" '
            f'markerHeight="9" markerUnits="userSpaceOnUse" orient="auto">'
            f'<path d="M0,0.8 L9.5,5 L0,9.2 z" fill="{STYLES[kind][0]}"/></marker>'
        )
    yield "</defs>"


def _stroke(path: str, colour: str, width: float, dash: str = "none") -> str:
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-dasharray="{dash}"/>'
    )


def _text(
    text: str,
    x: float,
    y: float,
    *,
    size: float,
    bold: bool = False,
    italic: bool = False,
    colour: str = INK,
    anchor: str = "start",
    halo: bool = False,
) -> str:
    style = (' font-weight="bold"' if bold else "") + (' font-style="italic"' if italic else "")
    if halo:  # readable across a line
        style += f' paint-order="stroke" stroke="{FLOW}" stroke-width="5"'
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" '
        f'text-anchor="{anchor}"{style}>{escape(text)}</text>'
    )
