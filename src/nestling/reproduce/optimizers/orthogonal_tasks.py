"""Tasks one after the other along their own directions: NL Eq. 45.

    L_i(W) = E |W x - y|^2,      x = s u_i,  y = s t_i,  s ~ N(0, 1),  so L_i(W) = |W u_i - t_i|^2

Eight tasks, W is 8 x 8, ``t_i ~ N(0, I / 8)``, W begins at zero: a loss of 1 is to know nothing.
Along orthonormal directions a gradient of one task never touches another: what is forgotten then
comes from momentum that was left over, or from a rule that turns the gradient. With an overlap the
cosine of neighbouring directions is c, of others ``c^|i-j|``; all can still be solved at once.

Every step sees a fresh batch. Step size, and where there is one the other number, are chosen with
another seed: by the mean loss just after each task, since nobody knows what comes; and, to see how
much the choice matters, by the mean loss at the end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from nestling.continual import metrics
from nestling.optim import DGD, GradientRule, Handling, adam, m3, muon
from nestling.report.figures import COLOURS, FAINT, MARKERS, SETTINGS
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Place, Row, Say
from nestling.reproduce.optimizers.toys import (
    CHOSEN_MOMENTUM,
    DELTA,
    MOMENTUM,
    Family,
    families,
    log_grid,
    said,
    save,
    walk,
)
from nestling.reproduce.tables import markdown, spread
from nestling.shapes import Tensor

TASK = "orthogonal-tasks"
SIZE, BATCH, SEEDS, TUNING = 8, 8, (0, 1, 2), 100
GIVEN = 0.05
"""The step size of the run in which nothing is chosen."""
UNCHECKED = Handling(check_finite=False)
"""A step size that is too large shall be tried, not reported."""

Run = Callable[[float, "Stream", Tensor, int], Tensor]
"""Of a number, a stream, step sizes ``(N,)`` and steps a task: W after each task,
``(tasks, N, 8, 8)``."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What is tried."""

    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    cosines: tuple[float, ...] = (0.0, 0.3, 0.6, 0.9)
    step_sizes: tuple[float, ...] = log_grid(1e-3, 10.0, 41)

    @property
    def key(self) -> dict[str, Any]:
        """As plain values."""
        return {"steps": list(self.steps), "step sizes": said(self.step_sizes), "size": SIZE,
                "batch": BATCH, "seeds": list(SEEDS), "chosen with seed": TUNING}  # fmt: skip


SMALL = Grid(steps=(2,), cosines=(0.0, 0.6), step_sizes=log_grid(0.01, 1.0, 5))
GRIDS: dict[Size, Grid] = {"smoke": SMALL, "validation": SMALL, "cpu": Grid()}


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Tasks of one seed.

    Attributes:
        directions: u_i, ``(tasks, 8)``.
        targets: t_i, ``(tasks, 8)``.
        scales: s of every example, ``(tasks, most steps, batch)``.
    """

    directions: Tensor
    targets: Tensor
    scales: Tensor

    def losses(self, W: Tensor) -> Tensor:
        """``|W u_i - t_i|^2`` of all tasks: ``(..., 8, 8)`` to ``(..., tasks)``."""
        return (W @ self.directions.mT - self.targets.mT).square().sum(dim=-2)

    def gradient(self, task: int, step: int, W: Tensor) -> Tensor:
        """Of the mean over a batch of ``|W s u - s t|^2``, at a stack of W."""
        u, s2 = self.directions[task], self.scales[task, step].square().mean()
        return 2 * s2 * (W @ u - self.targets[task])[..., :, None] * u


def stream(seed: int, *, cosine: float, steps: int) -> Stream:
    """Tasks with their directions at random in space.

    >>> one = stream(0, cosine=0.6, steps=1)
    >>> overlap = one.directions @ one.directions.mT
    >>> [round(value, 3) for value in overlap[0, :3].tolist()]
    [1.0, 0.6, 0.36]
    """
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(draw(SIZE, SIZE))[0]
    targets = draw(SIZE, SIZE) / math.sqrt(SIZE)
    directions = [basis[0]]
    for new in basis[1:]:
        directions.append(cosine * directions[-1] + math.sqrt(1 - cosine**2) * new)
    return Stream(directions=torch.stack(directions), targets=targets,
                  scales=draw(SIZE, steps, BATCH))  # fmt: skip


def by_rule(rule: GradientRule, one: Stream, lr: Tensor, steps: int) -> Tensor:
    """W after each task, for each step size."""
    start = torch.zeros(len(lr), SIZE, SIZE, dtype=torch.float64)

    def gradient(t: int, W: Tensor) -> Tensor:
        return one.gradient(*divmod(t - 1, steps), W)

    after = [W for t, W in enumerate(walk(rule, start, gradient, lr, SIZE * steps), start=1)
             if t % steps == 0]  # fmt: skip
    return torch.stack(after)


def by_layer(one: Stream, lr: Tensor, steps: int) -> Tensor:
    """The same with DGD, which listens to the inputs of a layer."""
    runs = []
    for step_size in lr.tolist():
        layer = nn.Linear(SIZE, SIZE, bias=False, dtype=torch.float64)
        nn.init.zeros_(layer.weight)
        optimizer, after = DGD(layer, lr=step_size, handling=UNCHECKED), []
        for task in range(SIZE):
            u, y = one.directions[task], one.targets[task]
            for step in range(steps):
                s = one.scales[task, step][:, None]
                optimizer.zero_grad()
                (layer(s * u) - s * y).square().sum(dim=-1).mean().backward()
                optimizer.step()
            after.append(layer.weight.detach().clone())
        optimizer.close()
        runs.append(torch.stack(after))
    return torch.stack(runs, dim=1)


def optimizers() -> dict[str, tuple[Sequence[float], Run]]:
    """For each optimizer its other numbers, and how it runs."""
    more = {"Adam": adam(), "Muon": muon(), "Muon, nothing kept": muon(0.0), "M3": m3()}
    every = [*families().values(), *(Family(name=name, rules={0.0: more[name]}) for name in more)]
    found: dict[str, tuple[Sequence[float], Run]] = {
        family.name: (
            tuple(family.rules),
            lambda number, one, lr, steps, family=family: by_rule(
                family.rules[number], one, lr, steps
            ),
        )
        for family in every
    }
    found["DGD"] = (0.0,), lambda number, one, lr, steps: by_layer(one, lr, steps)
    return found


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """One row for each optimizer and overlap; no data is needed."""
    grid = GRIDS[size]
    return [
        Measurement(
            task=TASK,
            key={"optimizer": name, "cosine": cosine, "numbers": list(numbers), **grid.key},
            make=partial(_measure, run, numbers, cosine, grid),
        )
        for cosine in grid.cosines
        for name, (numbers, run) in optimizers().items()
    ]


def _measure(
    run: Run, numbers: Sequence[float], cosine: float, grid: Grid, say: Say
) -> dict[str, Any]:
    found = {}
    for steps in grid.steps:
        say(f"{steps} steps a task")
        chosen = _choose(run, numbers, stream(TUNING, cosine=cosine, steps=steps), grid, steps)
        if len(numbers) == 1:
            chosen["given"] = numbers[0], GIVEN
        streams = [stream(seed, cosine=cosine, steps=steps) for seed in SEEDS]
        found[str(steps)] = {
            choice: _run(run, number, step_size, streams, steps)
            for choice, (number, step_size) in chosen.items()
        }
    return {"steps": found}


def _choose(
    run: Run, numbers: Sequence[float], one: Stream, grid: Grid, steps: int
) -> dict[str, tuple[float, float]]:
    """The number and the step size that are best just after each task, and at the end."""
    lr = torch.tensor(grid.step_sizes, dtype=torch.float64)
    R = torch.stack([one.losses(run(number, one, lr, steps)) for number in numbers])
    means = {"after": R.diagonal(dim1=1, dim2=3).mean(dim=-1), "end": R[:, -1].mean(dim=-1)}
    found = {}
    for choice, mean in means.items():
        best = int(mean.nan_to_num(nan=math.inf).argmin())
        number, step_size = divmod(best, len(lr))
        found[choice] = numbers[number], grid.step_sizes[step_size]
    return found


def _run(
    run: Run, number: float, step_size: float, streams: Sequence[Stream], steps: int
) -> dict[str, Any]:
    lr = torch.tensor([step_size], dtype=torch.float64)
    matrices = [one.losses(run(number, one, lr, steps))[:, 0].tolist() for one in streams]
    finite = all(math.isfinite(value) for R in matrices for row in R for value in row)
    functions = {"final": metrics.final_average, "forgetting": metrics.forgetting,
                 "just learned": metrics.plasticity}  # fmt: skip
    return {
        "number": number,
        "step size": step_size,
        **{name: [of(R) for R in matrices] if finite else None for name, of in functions.items()},
    }


Results = Mapping[str, Mapping[str, Any]]
"""By steps a task, and by what step sizes were chosen."""


def table(rows: Sequence[Row]) -> str:
    """Over steps a task, what it is made of, with nothing chosen, and over the overlap."""
    found = _found(rows)
    plain = found[min(found)]
    steps = list(next(iter(plain.values())))
    middle = _middle(steps)
    parts = [
        "Mean loss over all eight tasks at the end, by steps a task; orthonormal directions, step "
        "sizes chosen by the loss just after each task:",
        _by_steps(plain, "after"),
        "The same, step sizes chosen by the loss at the end:",
        _by_steps(plain, "end"),
        f"What it is made of, at {middle} steps a task:",
        _made_of(plain, middle),
        f"Mean loss at the end by the cosine of neighbouring directions, at {middle} steps a task, "
        "step sizes chosen by the loss just after each task:",
        markdown(["optimizer", *(f"{cosine:g}" for cosine in found)], [
            [name, *(_spread(result[name][middle]["after"]["final"]) for result in found.values())]
            for name in plain
        ]),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _by_steps(plain: Mapping[str, Results], choice: str) -> str:
    steps = list(next(iter(plain.values())))
    return markdown(["optimizer", *steps], [
        [name, *(_spread(result[n][choice]["final"]) for n in steps)]
        for name, result in plain.items()
    ])  # fmt: skip


def _made_of(plain: Mapping[str, Results], steps: str) -> str:
    head = ["optimizer", "step size", "other number", "just learned", "forgetting", "at the end",
            "at the end, chosen for that", f"at the end, step size {GIVEN:g}"]  # fmt: skip
    lines = []
    for name, result in plain.items():
        one = result[steps]
        after, given = one["after"], one.get("given")
        lines.append([
            name, f"{after['step size']:g}", f"{after['number']:g}" if given is None else "",
            *(_spread(after[key]) for key in ("just learned", "forgetting", "final")),
            _spread(one["end"]["final"]), "" if given is None else _spread(given["final"]),
        ])  # fmt: skip
    return markdown(head, lines)


def _found(rows: Sequence[Row]) -> dict[float, dict[str, Results]]:
    """Results by cosine and optimizer."""
    found: dict[float, dict[str, Results]] = {}
    for row in sorted(rows, key=lambda row: row["key"]["cosine"]):
        here = found.setdefault(row["key"]["cosine"], {})
        here[row["key"]["optimizer"]] = row["result"]["steps"]
    return found


def _middle(steps: Sequence[str]) -> str:
    return "5" if "5" in steps else steps[len(steps) // 2]


def _spread(values: Sequence[float] | None) -> str:
    if values is None:
        return "diverges"
    mean = statistics.fmean(values)
    if abs(mean) < 5e-4:
        return "< 0.001"
    return spread(values) if mean < 1000 else "> 1000"


SHOWN = ("gradient descent", MOMENTUM, CHOSEN_MOMENTUM, DELTA, "Adam", "DGD", "Muon", "M3",
         "Muon, nothing kept")  # fmt: skip


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Loss at the end over the steps a task, for both choices, and over the overlap."""
    found = _found(rows)
    plain = found[min(found)]
    steps = list(next(iter(plain.values())))
    middle = _middle(steps)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(14.2, 4.6), layout="constrained")
        first, second, last = figure.subplots(1, 3, sharey=True)
        chosen = {"after": (first, "Chosen just after each task"),
                  "end": (second, "Chosen for the end")}  # fmt: skip
        for choice, (axes, title) in chosen.items():
            lines = {n: [result[k][choice] for k in steps] for n, result in plain.items()}
            _panel(axes, [float(n) for n in steps], lines)
            axes.set_xscale("log")
            axes.set_xticks([float(n) for n in steps], steps)
            axes.minorticks_off()
            axes.set_xlabel("steps a task, orthonormal directions")
            axes.set_title(title)
        _panel(last, list(found), {
            name: [result[name][middle]["after"] for result in found.values()] for name in plain
        })  # fmt: skip
        first.set_ylabel("mean loss over all tasks at the end")
        first.set_ylim(LEAST / 2, 2e3)
        last.set_xlabel("cosine of neighbouring directions")
        last.set_xticks(list(found))
        last.set_title(f"Overlap, {middle} steps, chosen after each task")
        last.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return [save(figure, folder / "orthogonal-tasks.png")]


LEAST = 1e-5
"""What is smaller is drawn here: it is nothing, beside the 1 from which all begin."""


def _panel(axes: Axes, x: Sequence[float], lines: Mapping[str, Sequence[Any]]) -> None:
    for index, name in enumerate(name for name in SHOWN if name in lines):
        finals = [one["final"] for one in lines[name]]
        y = [math.nan if f is None else max(statistics.fmean(f), LEAST) for f in finals]
        style = "-" if index < len(COLOURS) else (0, (4, 2))
        marker = MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]
        axes.plot(x, y, color=COLOURS[index % len(COLOURS)], linestyle=style, linewidth=1.8,
                  marker=marker, markersize=5, label=name)  # fmt: skip
    axes.axhline(1.0, color=FAINT, linewidth=0.8)
    axes.set_yscale("log")
    axes.grid(axis="y")


PLACES = (
    Place(task=TASK, title="Tasks along their own directions (NL Eq. 45)", table=table, draw=draw),
)
