"""Pictures of curved valleys: the ways down, and where one optimizer is ahead of another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, LogNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nestling.report.figures import COLOURS, FAINT, INK, SETTINGS
from nestling.shapes import Tensor

Found = Mapping[str, Any]
AHEAD = LinearSegmentedColormap.from_list("ahead", [COLOURS[0], "#ffffff", COLOURS[1]])
"""Blue where it takes fewer steps, red where it takes more."""
FAR = 4.0
"""Ratio of the darkest colours."""
HALF = 4.6
"""Of the width of a picture."""


def draw_paths(
    panels: Sequence[Mapping[str, tuple[Found, Tensor]]], psi: Callable[..., Tensor]
) -> Figure:
    """One panel a landscape, with the ways of some optimizers.

    Args:
        panels: optimizer to what was found and its way ``(steps + 1, 2)``, of one landscape each.
        psi: the landscape, of points and its three numbers.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.4 * len(panels), 6.6), layout="constrained")
        above, below = figure.subplots(
            2, len(panels), squeeze=False, gridspec_kw={"height_ratios": (2, 1)}
        )
        for index, panel in enumerate(panels):
            _paths(above[index], panel, psi)
            _heights(below[index], panel, psi)
        above[0].set_ylabel("θ")
        below[0].set_ylabel("ψ")
    return figure


def _paths(
    axes: Axes, panel: Mapping[str, tuple[Found, Tensor]], psi: Callable[..., Tensor]
) -> None:
    one = next(iter(panel.values()))[0]
    k, a, w = _constants(one)
    r = torch.linspace(-HALF, HALF, 400, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(r, r, indexing="xy"), dim=-1)
    heights = psi(points, k, a, w).clamp(min=1e-3)
    axes.contourf(r, r, heights, levels=torch.logspace(-2, 3, 11).tolist(), cmap="Greys_r",
                  norm=LogNorm(1e-2, 3e3), alpha=0.45, extend="both")  # fmt: skip
    axes.plot(r, r + a * torch.sin(w * r), color=FAINT, linewidth=1.0)
    for index, way in enumerate(way for _, way in panel.values()):
        colour = COLOURS[index]
        axes.plot(way[:, 0], way[:, 1], color=colour, linewidth=1.0, alpha=0.55)
        axes.plot(way[:, 0], way[:, 1], linestyle="", marker="os"[index], markersize=2.4,
                  color=colour)  # fmt: skip
    r0, th0 = next(iter(panel.values()))[1][0].tolist()
    axes.plot(r0, th0, marker="o", color=INK, markersize=6)
    axes.annotate("start", (r0, th0), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axes.plot(0, 0, marker="*", color=INK, markersize=11)
    axes.set_xlim(-HALF, HALF)
    axes.set_ylim(-HALF, HALF)
    axes.set_xlabel("r")
    axes.set_title(f"k = {one['k']:g}, a = {one['a']:g}, ω = {one['w']:g}")


def _heights(
    axes: Axes, panel: Mapping[str, tuple[Found, Tensor]], psi: Callable[..., Tensor]
) -> None:
    for index, (name, (found, way)) in enumerate(panel.items()):
        label = f"{name.split(',')[0]}: {found['steps']:,} steps"
        axes.plot(psi(way, *_constants(found)), color=COLOURS[index], linewidth=1.4, label=label)
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 1e4)
    axes.set_yticks([1e-6, 1e-3, 1, 1e3])
    axes.set_xlabel("steps")
    axes.grid(axis="y")
    axes.legend(loc="upper right", fontsize=9, handlelength=1.2, borderaxespad=0.0)


def _constants(one: Found) -> list[Tensor]:
    return [torch.tensor(one[key], dtype=torch.float64) for key in "kaw"]


def draw_ratios(maps: Mapping[str, Sequence[tuple[Found, float]]]) -> Figure:
    """Steps as a share of momentum's, one map an optimizer, in all landscapes.

    Args:
        maps: optimizer to landscapes and ratios; NaN where none arrives.
    """
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(4.1 * len(maps) + 0.9, 3.7), layout="constrained")
        panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
        norm = TwoSlopeNorm(0.0, -math.log2(FAR), math.log2(FAR))
        for axes, (name, cells) in zip(panels, maps.items(), strict=True):
            _ratios(axes, cells, norm)
            axes.set_title(name, fontsize=10)
        shades = ScalarMappable(norm=norm, cmap=AHEAD)
        bar = figure.colorbar(shades, ax=panels, extend="both", label="steps, of momentum 0.9's")
        ticks = [-2, -1, 0, 1, 2]
        bar.set_ticks(ticks, labels=[f"{2.0**tick:g}" for tick in ticks])
    return figure


def _ratios(axes: Axes, cells: Sequence[tuple[Found, float]], norm: TwoSlopeNorm) -> None:
    ks = sorted({one["k"] for one, _ in cells})
    columns = sorted({(one["a"], one["w"]) for one, _ in cells})
    for one, value in cells:
        i, j = ks.index(one["k"]), columns.index((one["a"], one["w"]))
        if math.isnan(value):
            face, words = "#f1f3f5", "none"
        else:
            shown = math.log2(min(max(value, 1 / FAR), FAR))
            face = AHEAD(norm(shown))
            words = {0.0: "only\nit", math.inf: "not"}.get(value, f"{value:.2f}")
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, facecolor=face,
                                                    edgecolor="white"))  # fmt: skip
        dark = not math.isnan(value) and not 0.4 < value < 2.5
        axes.text(j, i, words, ha="center", va="center", fontsize=8.5,
                  color=FAINT if math.isnan(value) else "white" if dark else INK)  # fmt: skip
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(ks) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), [f"{a:g}\n{w:g}" for a, w in columns])
    axes.set_yticks(range(len(ks)), [f"k = {k:g}" for k in ks])
    axes.set_xlabel("a (above), ω (below)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
