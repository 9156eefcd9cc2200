"""Figures as SVG text, each small enough to be read on a phone without zooming.

A figure is drawn at about the width of a phone's screen; the page puts several beside each other
where there is room. Colours are Okabe and Ito's, told apart by colour-blind readers, and every
curve also differs by line style or marker.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

INK = "#1f2933"
FAINT = "#8a94a0"
GRID = "#e4e7eb"
SHADE = "#fdeec2"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito (2008), without yellow and black: both disappear on white or among the text."""
MARKERS = "osD^vP"
STYLES = ("-", (0, (4, 2)), (0, (1, 1.5)))
FONTS = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "DejaVu Sans", "sans-serif"]

SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """Points of one line; ``error`` is drawn as a band where given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    index: int = 0


def heat_map(
    table: Sequence[Sequence[float]],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: tuple[float, float],
    name: str,
) -> str:
    """A matrix with the number in every cell; NaN cells are left blank.

    Args:
        table: numbers, row by row.
        rows, columns: labels.
        scale: values of the lightest and the darkest colour; shared by figures to be compared.
        name: unique in the page, for the ids inside the SVG.
    """
    with matplotlib.rc_context(SETTINGS):
        height = 1.0 + 0.46 * len(rows)
        figure = Figure(figsize=(1.35 + 0.62 * len(columns), height), layout="constrained")
        axes = figure.subplots()
        low, high = scale
        # The light end only: dark text stays readable on every cell.
        colours = matplotlib.colormaps["Blues"]
        for i, row in enumerate(table):
            for j, value in enumerate(row):
                if math.isnan(value):
                    continue
                share = min(max((value - low) / max(high - low, 1e-9), 0.0), 1.0)
                face = colours(0.02 + 0.56 * share)
                axes.add_patch(
                    Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face, edgecolor="white")
                )
                axes.text(
                    j, i, f"{value:.2f}", ha="center", va="center", color=INK,
                    fontweight="bold" if i == j + 1 else "normal",
                )  # fmt: skip
                if i == j + 1:
                    axes.add_patch(
                        Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=INK)
                    )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=30, ha="left")
        axes.set_yticks(range(len(rows)), rows)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return _svg(figure, name)


def curves(
    lines: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_range: tuple[float, float],
    name: str,
    shade: tuple[float, float] | None = None,
    ends: Sequence[float] = (),
    size: tuple[float, float] = (3.6, 2.5),
) -> str:
    """One panel of lines.

    Args:
        lines: what to draw; ``index`` chooses colour and line style.
        title, x_label: words; the page says what y is.
        y_range: shared by panels to be compared.
        name: unique in the page.
        shade: a stretch of x to mark, such as when a domain was being learned.
        ends: x of faint vertical lines, such as the ends of phases.
        size: inches at 72 points; 3.6 is about a phone.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        for x in ends:
            axes.axvline(x, color=GRID, linewidth=0.8, zorder=0)
        if shade is not None:
            axes.axvspan(*shade, color=SHADE, linewidth=0, zorder=0)
        for line in lines:
            axes.plot(
                line.x, line.y, label=line.label, linewidth=1.8,
                color=COLOURS[line.index % len(COLOURS)],
                linestyle=STYLES[line.index % len(STYLES)],
            )  # fmt: skip
        axes.set_title(title)
        axes.set_ylim(*y_range)
        axes.set_xlabel(x_label)
        axes.grid(axis="y")
        _thousands(axes)
        return _svg(figure, name)


def bars(
    values: Mapping[str, Sequence[float]],
    *,
    groups: Sequence[str],
    title: str,
    x_label: str,
    name: str,
) -> str:
    """Dots, one row per group, one dot per series: compared by position, on a log axis if needed.

    Args:
        values: series name to one number per group; NaN is left out.
        groups: labels, from the top.
        title, x_label: words.
        name: unique in the page.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(3.6, 1.1 + 0.32 * len(groups)), layout="constrained")
        axes = figure.subplots()
        for index, (label, numbers) in enumerate(values.items()):
            axes.plot(
                numbers, range(len(groups)), MARKERS[index % len(MARKERS)], label=label,
                color=COLOURS[index % len(COLOURS)], markersize=6, alpha=0.9, clip_on=False,
            )  # fmt: skip
        known = [v for row in values.values() for v in row if not math.isnan(v)]
        low, top = min(known, default=0.0), max(known, default=1.0)
        if low > 0 and top > 20 * low:
            # Powers of ten apart: a linear axis would show the largest and pile up the rest.
            axes.set_xscale("log")
            axes.set_xlim(low / 1.4, top * 1.4)
            axes.xaxis.set_major_locator(LogLocator(numticks=4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(-0.04 * top, 1.08 * top if top > 0 else 1.0)
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.grid(axis="y", linestyle=":")
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        return _svg(figure, name)


def marker(index: int) -> str:
    """The marker of a series as a small picture, for a key outside the figure."""
    shape = (
        '<circle cx="6" cy="6" r="4.5"/>',
        '<rect x="2" y="2" width="8" height="8"/>',
        '<path d="M6 1 11 6 6 11 1 6z"/>',
        '<path d="M6 1.5 11 10.5 1 10.5z"/>',
        '<path d="M1 1.5 11 1.5 6 10.5z"/>',
        '<path d="M4 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
    )[index % len(MARKERS)]
    return (
        f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true" '
        f'fill="{COLOURS[index % len(COLOURS)]}">{shape}</svg>'
    )


def _thousands(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x / 1000:g}K" if abs(x) >= 1000 else f"{x:g}")
    )


def _svg(figure: Figure, name: str) -> str:
    """The figure as inline SVG: no prolog, no metadata, ids of its own, scales with the page."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.S)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: " + ", ".join(map(_quoted, FONTS)), text)
    text = re.sub(r"font: (\d*) ?([\d.]+px) [^;\"]*", _font, text)
    width = re.search(r'width="([\d.]+)pt"', text)
    style = f"width:100%;max-width:{float(width[1]) * 4 / 3:.0f}px;height:auto" if width else ""
    return re.sub(
        r'height="[\d.]+pt"([^>]*?)width="[\d.]+pt"|width="[\d.]+pt" height="[\d.]+pt"',
        f'style="{style}"', text, count=1,
    )  # fmt: skip


def _font(found: re.Match[str]) -> str:
    weight = f"{found[1]} " if found[1] else ""
    return f"font: {weight}{found[2]} " + ", ".join(map(_quoted, FONTS))


def _quoted(font: str) -> str:
    return f"'{font}'" if " " in font else font
