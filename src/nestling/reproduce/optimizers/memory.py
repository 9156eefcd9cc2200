"""How long a momentum remembers: the mass of every gradient in it, by age (NL section 4.3).

Gradient t is an impulse, 1 at place t and 0 elsewhere. After T steps place t of an optimizer's
state is what gradient t still weighs in it, and its share of the sum is its share of the mass:

    g_t = e_t      =>      M = sum_t weight_t e_t,      share of age T - t = weight_t / sum of them

Nothing here knows a formula: what is read is the state of the optimizer itself. The newest gradient
has age 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import Parameter

from nestling.optim import GeneralizedMomentum, GradientMemory, GradientRule, m3
from nestling.report.figures import COLOURS, FAINT, INK, SETTINGS, STYLES
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Place, Row, Say
from nestling.reproduce.optimizers.toys import plain, save
from nestling.reproduce.tables import markdown

TASK = "memory-mass"
SHARES = (0.5, 0.9, 0.99)
LAST = (6, 43)
"""Numbers of last gradients of which the paper says that they carry 50 % and 99 %."""
POINTS = 150
"""Ages of a row, at about equal ratios."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A memory that is measured.

    Attributes:
        name: for tables.
        rule: that has it; without output map, for that is no sum of gradients.
        entry: of the state.
        period: steps between two of its writes.
        later: steps after the end of a period, while it is held.
        steps: before that; by then what was first is forgotten.
    """

    name: str
    rule: GradientRule
    entry: str
    steps: int
    period: int = 1
    later: int = 0


def memories(size: Size) -> list[Kept]:
    """Momenta, and M3's two at the ends of a period of the slow one."""
    made = [
        Kept(name=f"momentum {keep:g}", rule=plain(keep), entry="momentum", steps=steps)
        for keep, steps in ((0.9, 200), (0.95, 400), (0.99, 2_000))[: 3 if size == "cpu" else 1]
    ]
    fast = m3(output=None, second_moment=None)
    made.append(Kept(name="M3, fast", rule=fast, entry="fast", steps=400))
    for period in (5, 20, 100) if size == "cpu" else (5,):
        rule = m3(frequency=period, output=None, second_moment=None)
        made += [
            Kept(name=f"M3, slow, every {period}, {when}", rule=rule, entry="slow_output",
                 steps=200 * period, period=period, later=later)
            for when, later in (("just written", 0), ("before the next", period - 1))
        ]  # fmt: skip
    return made


def _linear(rule: GradientRule) -> list[GradientMemory]:
    return [one for one in rule.memories if isinstance(one, GradientMemory)]


def mass(kept: Kept) -> NDArray[np.float64]:
    """Share of each gradient in what the memory holds, from age 1 on.

    >>> mass(Kept(name="", rule=plain(0.5), entry="momentum", steps=30))[:3].round(6).tolist()
    [0.5, 0.25, 0.125]
    """
    total = kept.steps + kept.later
    parameter = Parameter(torch.zeros(1, total, dtype=torch.float64))
    # Told that it is a matrix: by its shape it would be none, and Adam would move it.
    group = {"params": [parameter], "by": "main"}
    optimizer = GeneralizedMomentum([group], kept.rule, lr=0.0)
    parameter.grad = torch.zeros_like(parameter)
    for t in range(total):
        parameter.grad.zero_()
        parameter.grad[0, t] = 1.0
        optimizer.step()
    weights = optimizer.state[parameter][kept.entry][0].flip(0)
    return (weights / weights.sum()).numpy()


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """One row for each memory; no data is needed."""
    return [
        Measurement(
            task=TASK,
            key={"optimizer": kept.name, "rule": kept.rule.name, "entry": kept.entry,
                 "period": kept.period, "steps": kept.steps, "held for": kept.later,
                 "keep": [one.keep for one in _linear(kept.rule)]},
            make=partial(_measure, kept),
        )
        for kept in memories(size)
    ]  # fmt: skip


def _measure(kept: Kept, say: Say) -> dict[str, Any]:
    shares = mass(kept)
    carried = shares.cumsum()
    ages = sorted({round(age) for age in np.geomspace(1, len(shares), POINTS).tolist()})
    return {
        "needed": {f"{share:g}": int((carried < share).sum()) + 1 for share in SHARES},
        "last": {str(n): float(carried[n - 1]) for n in LAST},
        "mean age": float((shares * np.arange(1, len(shares) + 1)).sum()),
        "ages": ages,
        "share": [float(f"{shares[age - 1]:.6g}") for age in ages],
        "carried": [float(f"{carried[age - 1]:.6g}") for age in ages],
    }


def table(rows: Sequence[Row]) -> str:
    """A line for each memory."""
    head = ["memory", *(f"gradients for {100 * share:g} %" for share in SHARES),
            *(f"in the last {n}" for n in LAST), "mean age"]  # fmt: skip
    return markdown(head, [_line(row["key"]["optimizer"], row["result"]) for row in rows])


def _line(name: str, result: Mapping[str, Any]) -> list[str]:
    return [
        name,
        *(f"{result['needed'][f'{share:g}']:,}" for share in SHARES),
        *(f"{100 * result['last'][str(n)]:.1f} %" for n in LAST),
        f"{result['mean age']:.1f}",
    ]


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Mass of a gradient over its age, and what the newest carry together."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(12.4, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        _lines(left, rows, "share")
        left.set_yscale("log")
        left.set_ylim(1e-3, 20)
        left.set_yticks([0.001, 0.01, 0.1, 1, 10], ["0.001", "0.01", "0.1", "1", "10"])
        left.set_title("One gradient")
        left.set_xlabel("age, in gradients")
        left.set_ylabel("% of the mass")
        for share in SHARES:
            right.axhline(100 * share, color=FAINT, linewidth=0.8, zorder=0)
        _lines(right, rows, "carried")
        right.set_ylim(0, 101)
        right.set_yticks([0, 25, *(100 * share for share in SHARES)], ["0", "25", "50", "90", "99"])
        right.set_title("The newest together")
        right.set_xlabel("the last so many gradients")
        right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return [save(figure, folder / "memory-mass.png")]


def _lines(axes: Axes, rows: Sequence[Row], key: str) -> None:
    colours: dict[str, str] = {}
    for row in rows:
        name, result = row["key"]["optimizer"], row["result"]
        # One colour for a memory, whether just written or about to be; a dotted line for the one
        # that falls on another.
        memory = str(row["key"]["keep"][0]) if row["key"]["period"] == 1 else row["key"]["period"]
        again = str(memory) in colours
        colour = colours.setdefault(str(memory), COLOURS[len(colours) % len(COLOURS)])
        axes.plot(result["ages"], [100 * share for share in result[key]], label=name,
                  color=INK if again and row["key"]["period"] == 1 else colour,
                  linestyle=STYLES[2] if again else STYLES[0], linewidth=1.8)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(1, 5_000)


PLACES = (
    Place(task=TASK, title="How long a momentum remembers (NL section 4.3)", table=table,
          draw=draw),
)  # fmt: skip
