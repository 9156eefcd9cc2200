"""Pictures of learning on: what was known of each domain, phase by phase.

heat map            R[i, j], one row a phase
forgetting curves   R[., j] over the phases, one line a domain, its own phase shaded
scatter             plasticity against forgetting, one point a run
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nestling.report.figures import COLOURS, FAINT, INK, MARKERS, SETTINGS

Matrix = Sequence[Sequence[float]]


def forgetting_curves(
    runs: Mapping[str, Matrix], names: Sequence[str], *, unit: str = "bits per byte"
) -> Figure:
    """Loss on every domain after every phase, one panel a run, all on one scale.

    Args:
        runs: title to R with the row before learning, ``(n + 1, n)``.
        names: of the n domains.
        unit: of R.

    Raises:
        ValueError: if there is no run, or a matrix is not of that shape.
    """
    _check(runs, names)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(1.2 + 3.9 * len(runs), 3.9), layout="constrained")
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for axes, (title, matrix) in zip(panels, runs.items(), strict=True):
            _curves(axes, matrix, names)
            axes.set_title(title)
        panels[0].set_ylabel(f"{unit} on held-out text (lower is better)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(names))
    return figure


def _curves(axes: Axes, matrix: Matrix, names: Sequence[str]) -> None:
    phases = range(1, len(names) + 1)
    for j, name in enumerate(names):
        own = [row[j] for row in matrix[1:]]
        colour = COLOURS[j % len(COLOURS)]
        axes.plot(phases[j:], own[j:], color=colour, marker=MARKERS[j % len(MARKERS)],
                  markersize=5, linewidth=2, label=name)  # fmt: skip
    axes.set_xticks(list(phases), [f"after\n{name}" for name in names], fontsize=8)
    axes.set_xlim(0.8, len(names) + 0.2)
    axes.grid(axis="y")


def heat_map(R: Matrix, names: Sequence[str], *, title: str, unit: str = "bits per byte") -> Figure:
    """``R[i, j]`` in numbers and shades, dark is bad.

    Args:
        R: with the row before learning, ``(n + 1, n)``.
        names: of the n domains.
        title: of the picture.
        unit: of R.

    Raises:
        ValueError: if R is not of that shape.
    """
    _check({title: R}, names)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(
            figsize=(1.6 + 0.95 * len(names), 1.3 + 0.45 * len(R)), layout="constrained"
        )
        axes = figure.subplots()
        flat = sorted(value for row in R for value in row)
        # One hopeless cell must not make all others look alike.
        top = flat[int(0.85 * (len(flat) - 1))]
        image = axes.imshow(R, cmap="Blues", aspect="auto", vmin=flat[0], vmax=top)
        for i, row in enumerate(R):
            for j, value in enumerate(row):
                dark = value > (flat[0] + top) / 2
                axes.text(j, i, f"{value:.2f}", ha="center", va="center",
                          color="white" if dark else INK, fontsize=9)  # fmt: skip
        axes.set_xticks(range(len(names)), list(names))
        axes.set_yticks(range(len(R)), ["before", *(f"after {name}" for name in names)])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title)
        figure.colorbar(image, ax=axes, extend="max", label=unit)
    return figure


def stability_plasticity(
    points: Mapping[str, Sequence[tuple[float, float]]], *, unit: str = "bits per byte"
) -> Figure:
    """Plasticity against forgetting: below and left is better.

    Args:
        points: strategy to ``(plasticity, forgetting)`` of each seed.
        unit: of both.

    Raises:
        ValueError: if there is no point.
    """
    if not any(points.values()):
        raise ValueError("points: expected at least one, got none")
    with matplotlib.rc_context(SETTINGS):
        beside = 0.085 * max(map(len, points))  # inches that the legend takes
        figure = Figure(figsize=(4.9 + beside, max(4.4, 0.3 * len(points))), layout="constrained")
        axes = figure.subplots()
        for index, (name, seeds) in enumerate(points.items()):
            colour = COLOURS[index % len(COLOURS)]
            marker = MARKERS[(index // len(COLOURS) + index) % len(MARKERS)]
            x, y = [p for p, _ in seeds], [f for _, f in seeds]
            axes.scatter(x, y, color=colour, marker=marker, s=42, label=name,
                         edgecolors="white", linewidths=0.6, zorder=3)  # fmt: skip
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        axes.set_yscale("symlog", linthresh=0.1)
        lost = [forgotten for seeds in points.values() for _, forgotten in seeds]
        axes.set_ylim(min(-0.02, 1.3 * min(lost)), max(0.1, 1.6 * max(lost)))
        axes.set_xlabel(f"just learned: {unit} on the domain of the phase")
        axes.set_ylabel(f"forgetting: {unit} lost since the best")
        axes.grid()
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _check(runs: Mapping[str, Matrix], names: Sequence[str]) -> None:
    if not runs:
        raise ValueError("runs: expected at least one, got none")
    for title, matrix in runs.items():
        shape = (len(matrix), *sorted({len(row) for row in matrix}))
        if shape != (len(names) + 1, len(names)):
            raise ValueError(
                f"{title}: expected a matrix {(len(names) + 1, len(names))}, got {shape}"
            )
