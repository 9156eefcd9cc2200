"""Curved valleys: NL Fig. 4 and Eq. 53, momentum against delta momentum.

    psi(r, th) = r^2 + k (r - th + a sin(w r))^2,      from (-3.5, 2)

The paper shows one landscape and gives no constants. Here a grid of them is measured: how many
steps until psi is below 1e-6 for 100 steps on end. For every landscape each optimizer gets the step
size, and where it has one the other number, with which it is fastest there.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nestling.optim import adam
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Place, Row, Say
from nestling.reproduce.optimizers.landscape_pictures import draw_paths, draw_ratios
from nestling.reproduce.optimizers.toys import (
    CHOSEN_MOMENTUM,
    DELTA,
    MOMENTUM,
    RAW,
    Family,
    families,
    log_grid,
    said,
    save,
    walk,
)
from nestling.reproduce.tables import markdown
from nestling.shapes import Tensor

TASK = "landscapes"
START, GOAL, STAY = (-3.5, 2.0), 1e-6, 100
"""From where; psi is below the goal for so many steps: then the first of them is the arrival. To
fly through is not to arrive, and to be thrown out much later, as Adam is, takes nothing back."""
Found = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried: landscapes, step sizes, and how many steps are made."""

    k: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0, 20.0)
    a: tuple[float, ...] = (0.5, 1.0)
    w: tuple[float, ...] = (3.0, 5.0, 10.0)
    step_sizes: tuple[float, ...] = log_grid(1e-5, 1.0, 51)
    most: int = 20_000

    @property
    def landscapes(self) -> list[tuple[float, float, float]]:
        """All (k, a, w)."""
        return list(itertools.product(self.k, self.a, self.w))

    @property
    def key(self) -> dict[str, Any]:
        """As plain values."""
        return {"k": list(self.k), "a": list(self.a), "w": list(self.w), "most steps": self.most,
                "goal": GOAL, "stay": STAY, "step sizes": said(self.step_sizes)}  # fmt: skip


SMALL = Grid(k=(1.0, 2.0), a=(0.5,), w=(3.0,), step_sizes=log_grid(1e-2, 0.1, 5), most=400)
GRIDS: dict[Size, Grid] = {"smoke": SMALL, "validation": SMALL, "cpu": Grid()}


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """One row for each optimizer; no data is needed."""
    return [
        Measurement(
            task=TASK,
            key={"optimizer": family.name, family.number or "number": list(family.rules),
                 **GRIDS[size].key},
            make=partial(_measure, family, GRIDS[size]),
        )
        for family in (*families().values(), Family(name="Adam", rules={0.9: adam()}))
    ]  # fmt: skip


def psi(x: Tensor, k: Tensor, a: Tensor, w: Tensor) -> Tensor:
    """The landscape at x = (r, th), ``(..., 2)``.

    >>> k, a, w = torch.tensor(2.0), torch.tensor(0.5), torch.tensor(3.0)
    >>> psi(torch.tensor([[0.0, 0.0], [0.0, 1.0]]), k, a, w)
    tensor([0., 2.])
    """
    r, th = x.unbind(-1)
    return r**2 + k * (r - th + a * torch.sin(w * r)) ** 2


def slope(x: Tensor, k: Tensor, a: Tensor, w: Tensor) -> Tensor:
    """The gradient of :func:`psi`, ``(..., 2)``."""
    r, th = x.unbind(-1)
    off = 2 * k * (r - th + a * torch.sin(w * r))
    return torch.stack([2 * r + off * (1 + a * w * torch.cos(w * r)), -off], dim=-1)


def arrivals(family: Family, grid: Grid, say: Say) -> tuple[Tensor, Tensor]:
    """Steps until psi is below the goal to stay, and until it is there for the first time.

    Returns:
        Two of ``(numbers, landscapes, step sizes)``, infinite where it was not reached.
    """
    count = len(grid.step_sizes)
    kaw = torch.tensor(grid.landscapes, dtype=torch.float64).repeat_interleave(count, dim=0)
    k, a, w = kaw.T
    lr = torch.tensor(grid.step_sizes, dtype=torch.float64).repeat(len(grid.landscapes))
    start = torch.tensor([START], dtype=torch.float64).repeat(len(lr), 1, 1)

    def gradient(t: int, x: Tensor) -> Tensor:
        return slope(x, k[:, None], a[:, None], w[:, None])

    stays, first = [], []
    for number, rule in family.rules.items():
        say(f"{family.number or 'number'} {number:g}")
        there, arrived = torch.full_like(lr, math.inf), torch.full_like(lr, math.inf)
        outside = torch.zeros_like(lr)
        for t, x in enumerate(walk(rule, start, gradient, lr, grid.most), start=1):
            below = psi(x[:, 0], k, a, w) < GOAL
            outside = torch.where(below, outside, t)
            there = torch.where(below & there.isinf(), t, there)
            stayed = (t - outside >= STAY) & arrived.isinf()
            arrived = torch.where(stayed, outside + 1, arrived)
        stays.append(arrived)
        first.append(there)
    shape = (len(family.rules), len(grid.landscapes), count)
    return torch.stack(stays).view(shape), torch.stack(first).view(shape)


def _measure(family: Family, grid: Grid, say: Say) -> dict[str, Any]:
    stays, first = arrivals(family, grid, say)
    numbers, found = list(family.rules), []
    for place, (k, a, w) in enumerate(grid.landscapes):
        here = stays[:, place]
        best = int(here.argmin())
        number, step_size = divmod(best, here.shape[1])
        steps = here.flatten()[best].item()
        found.append({
            "k": k, "a": a, "w": w,
            "steps": None if math.isinf(steps) else int(steps),
            "first": None if math.isinf(steps) else int(first[number, place, step_size].item()),
            "step size": grid.step_sizes[step_size],
            "number": numbers[number],
            "converge": here[number].isfinite().double().mean().item(),
        })  # fmt: skip
    return {"landscapes": found, "reached": sum(one["steps"] is not None for one in found)}


def by_family(rows: Sequence[Row]) -> dict[str, list[Found]]:
    """What was found for each optimizer, in one order of landscapes."""
    return {row["key"]["optimizer"]: row["result"]["landscapes"] for row in rows}


def ratio(one: Found, other: Found) -> float:
    """Steps as a share of another's: infinite if only the other arrives, NaN if none does."""
    if other["steps"] is None:
        return math.nan if one["steps"] is None else 0.0
    return math.inf if one["steps"] is None else one["steps"] / other["steps"]


def table(rows: Sequence[Row]) -> str:
    """A line for each optimizer, and below it all landscapes."""
    found = by_family(rows)
    head = ["optimizer", "arrives in", "fastest in", "steps, of momentum's (median)",
            "faster than momentum 0.9", "slower", "step sizes that arrive"]  # fmt: skip
    lines = [_line(name, found) for name in found]
    every = found[MOMENTUM]
    full = [
        [f"{one['k']:g}", f"{one['a']:g}", f"{one['w']:g}",
         *(_bold_fastest(name, place, found) for name in found)]
        for place, one in enumerate(every)
    ]  # fmt: skip
    return (
        f"{markdown(head, lines)}\n\nSteps in every landscape, the fewest in bold; -: not in "
        f"{rows[0]['key']['most steps']:,}.\n\n{markdown(['k', 'a', 'w', *found], full)}"
    )


def _line(name: str, found: Mapping[str, Sequence[Found]]) -> list[str]:
    mine, total = found[name], len(found[name])
    ratios = [ratio(one, other) for one, other in zip(mine, found[MOMENTUM], strict=True)]
    known = [value for value in ratios if not math.isnan(value)]
    fastest = sum(
        one["steps"] is not None and one["steps"] == _fewest(place, found)
        for place, one in enumerate(mine)
    )
    middle = statistics.median(known) if known else math.nan
    converge = statistics.fmean(one["converge"] for one in mine)
    return [
        name,
        f"{sum(one['steps'] is not None for one in mine)} of {total}",
        str(fastest),
        f"{middle:.2f}" if math.isfinite(middle) else "-",
        str(sum(value < 1 for value in known)),
        str(sum(value > 1 for value in known)),
        f"{100 * converge:.0f} %",
    ]


def _fewest(place: int, found: Mapping[str, Sequence[Found]]) -> float:
    return min(float(one[place]["steps"] or math.inf) for one in found.values())


def _bold_fastest(name: str, place: int, found: Mapping[str, Sequence[Found]]) -> str:
    steps = found[name][place]["steps"]
    if steps is None:
        return "-"
    return f"**{steps:,}**" if steps == _fewest(place, found) else f"{steps:,}"


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Ways where delta momentum wins most, in the middle and least; the ratio everywhere."""
    found = by_family(rows)
    if not {MOMENTUM, CHOSEN_MOMENTUM, DELTA, RAW} <= found.keys():
        return []
    ratios = [ratio(*pair) for pair in zip(found[DELTA], found[MOMENTUM], strict=True)]
    both = [place for place, value in enumerate(ratios) if 0 < value < math.inf]
    if not both:
        return []
    both.sort(key=ratios.__getitem__)
    panels = [
        {name: (found[name][place], path(name, found[name][place])) for name in (MOMENTUM, DELTA)}
        for place in (both[0], both[len(both) // 2], both[-1])
    ]
    maps = {
        name: [(one, value) for one, value in zip(found[name], (
            ratio(*pair) for pair in zip(found[name], found[MOMENTUM], strict=True)
        ), strict=True)]
        for name in (DELTA, RAW, CHOSEN_MOMENTUM)
    }  # fmt: skip
    return [
        save(draw_paths(panels, psi), folder / "landscapes-paths.png"),
        save(draw_ratios(maps), folder / "landscapes-ratio.png"),
    ]


def path(name: str, one: Found) -> Tensor:
    """The way that an optimizer of :func:`families` took, ``(steps + 1, 2)``."""
    k, a, w = (torch.tensor(one[key], dtype=torch.float64) for key in "kaw")
    start = torch.tensor([[START]], dtype=torch.float64)
    lr = torch.tensor([one["step size"]], dtype=torch.float64)
    rule = families()[name].rules[one["number"]]
    steps = walk(rule, start, lambda t, x: slope(x, k, a, w), lr, one["steps"])
    return torch.cat([start, *steps])[:, 0]


PLACES = (
    Place(task=TASK, title="Curved valleys: momentum against delta momentum (NL Fig. 4)",
          table=table, draw=draw),
)  # fmt: skip
