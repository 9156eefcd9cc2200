"""Tables and curves of NL Fig. 11 in small, and of M3 with one part changed at a time."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nestling.report.figures import COLOURS, MARKERS, SETTINGS
from nestling.reproduce.measured import Place, Row
from nestling.reproduce.optimizers.training import PROBLEMS
from nestling.reproduce.tables import markdown, spread


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by optimizer, the lowest loss on held-out data first; what diverged is behind."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["key"]["optimizer"], []).append(row)
    return dict(sorted(found.items(), key=lambda pair: _mean(pair[1], "held_out")))


def shown(rows: Sequence[Row], problem: str) -> str:
    """One line for each optimizer: means over the seeds."""
    unit, lines = PROBLEMS[problem].unit, []
    for name, same in grouped(rows).items():
        lost = sum("diverged" in row["result"] for row in same)
        cells = [spread(_all(same, value), 4) for value in ("held_out", "train")]
        cells.append(spread([100 * error for error in _all(same, "error")], 2))
        lr = ", ".join(sorted({f"{row['key']['lr']:g}" for row in same}))
        lines.append([name, lr, *cells, f"{len(same)}" + (f", {lost} diverged" if lost else "")])
    head = ["optimizer", "step size", f"held out, {unit}", f"training, {unit}", "wrong, %", "seeds"]
    return markdown(head, lines)


def draw(rows: Sequence[Row], folder: Path, *, problem: str) -> list[Path]:
    """Loss against steps, in training and on held-out data."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(10.5, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for index, (name, same) in enumerate(grouped(rows).items()):
            finite = [row["result"]["curve"] for row in same if "curve" in row["result"]]
            if finite:
                for place, axes in enumerate(panels):
                    _curve(axes, finite, 1 + place, name, index)
        titles = ("while learning", "on held-out data")
        for axes, title in zip(panels, titles, strict=True):
            axes.set_title(f"{PROBLEMS[problem].name}, {title}")
            axes.set_xlabel("steps")
            axes.set_yscale("log")
            axes.grid(axis="y")
        panels[0].set_ylabel(f"loss, {PROBLEMS[problem].unit} (lower is better)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    file = folder / f"optimizers-{problem}.png"
    figure.savefig(file, dpi=130)
    return [file]


def _curve(axes: Axes, curves: Sequence[Any], column: int, name: str, index: int) -> None:
    steps = [point[0] for point in curves[0]]
    means = [statistics.fmean(curve[i][column] for curve in curves) for i in range(len(steps))]
    again = index // len(COLOURS)  # a colour that comes back has dashes and another marker
    axes.plot(
        steps, means, label=name, color=COLOURS[index % len(COLOURS)], linewidth=1.8,
        linestyle="--" if again else "-", marker=MARKERS[(index + again) % len(MARKERS)],
        markersize=4,
    )  # fmt: skip


def _all(rows: Sequence[Row], value: str) -> list[float]:
    return [row["result"][value] for row in rows if value in row["result"]]


def _mean(rows: Sequence[Row], value: str) -> float:
    found = _all(rows, value)
    return statistics.fmean(found) if found else float("inf")


PLACES = tuple(
    Place(
        task=f"learn-{name}",
        title=f"{problem.name} (NL Fig. 11)",
        table=partial(shown, problem=name),
        draw=partial(draw, problem=name),
    )
    for name, problem in PROBLEMS.items()
)
ABLATIONS = (
    Place(
        task="ablate-vit",
        title="M3 with one part changed at a time",
        table=partial(shown, problem="vit"),
    ),
)
