"""Learning on with each optimizer: digits in parts, momenta kept or dropped at the end of a part.

    split      two digits after the other; measured: which of the two
    permuted   all digits, with the pixels of each part in another order

Momenta are memories of gradients (NL 4.5): what is dropped at the end of a part is lost, and what
is kept still points at the part before. Step sizes are chosen by what is right at the end of a
validation stream, for kept and for dropped momenta apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from nestling.continual import metrics
from nestling.continual.protocol import Experience, Scorer
from nestling.continual.run import run
from nestling.continual.scoring import error_rate, error_rate_within_task
from nestling.continual.strategies import Sequential
from nestling.continual.stream import Stream
from nestling.optim import NonFiniteError, optimizer_named, roles
from nestling.reproduce.image_data import images
from nestling.reproduce.image_learners import Perceptron
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Place, Row, Say
from nestling.reproduce.optimizers.methods import ADAMS, PLAIN, TUNING, next_steps
from nestling.reproduce.tables import markdown, spread

PARTS, WIDTH, SEEDS = 10, 100, (0, 1, 2)
STREAMS: Mapping[str, tuple[int, int, Scorer]] = {
    "split": (2_000, 32, error_rate_within_task),
    "permuted": (6_400, 64, error_rate),
}
"""Most images learned of each part, images of a batch, and how answers are scored."""
GRIDS: Mapping[str, Sequence[float]] = {
    "adamw": ADAMS, "muon": ADAMS, "adamuon": ADAMS, "m3": ADAMS,
    "momentum": PLAIN, "delta_momentum": PLAIN,
}  # fmt: skip
TITLES = {"adamw": "AdamW", "muon": "Muon", "adamuon": "AdaMuon", "m3": "M3",
          "delta_momentum": "delta momentum"}  # fmt: skip


def learn(
    kind: str, optimizer: str, data: Path, *, lr: float, seed: int, keep: bool, size: Size
) -> dict[str, Any]:
    """Learn a stream; what is right at the end and what was forgotten, or that it diverged."""
    parts = images(data, "split" if kind == "split" else "permuted", size=size, seed=seed)
    most, batch, score = STREAMS[kind]
    few = [
        Experience(one.name, one.items.rows(slice(0, most)), one.classes)
        for one in parts.train[:PARTS]
    ]
    torch.manual_seed(seed)
    model = Perceptron(WIDTH)
    learner = Sequential(model, partial(_make, model, optimizer, lr), clip=None, keep_moments=keep)
    stream = Stream(few, batch=batch, seed=seed, boundaries=True)
    try:
        record = run(learner, stream, parts.test[:PARTS], score=score)
    except NonFiniteError as error:
        return {"diverged": str(error)}
    return {
        "right": 1 - statistics.fmean(record.R[-1]),
        "forgetting": metrics.forgetting(record.R),
        "just_learned": 1 - metrics.plasticity(record.R),
    }


def _make(
    model: nn.Module, optimizer: str, lr: float, named: Mapping[str, Parameter]
) -> torch.optim.Optimizer:
    return optimizer_named(optimizer, named, lr=lr, weight_decay=0.0, roles=roles(model))


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """Step sizes on the validation stream, then three seeds with the best of them."""
    found: list[Measurement] = []
    for kind in STREAMS:
        make = partial(_measurement, kind, data, size)
        for optimizer, grid in GRIDS.items():
            done = _tuned(rows, kind, optimizer)
            missing = next_steps(grid, done)
            key = {"optimizer": optimizer, "kept": True}
            if missing:
                found += [make({**key, "lr": lr, "seed": TUNING}) for lr in missing]
                continue
            best = min(done, key=lambda lr: done[lr])
            found += [
                make({"optimizer": optimizer, "kept": kept, "lr": best, "seed": seed})
                for kept in (True, False)
                for seed in (SEEDS if size == "cpu" else SEEDS[:1])
            ]
    return found


def _measurement(kind: str, data: Path, size: Size, key: Mapping[str, Any]) -> Measurement:
    tuning = key["seed"] == TUNING

    def make(say: Say) -> dict[str, Any]:
        return learn(
            kind, key["optimizer"], data, lr=key["lr"], keep=key["kept"],
            seed=0 if tuning else key["seed"],
            size="validation" if tuning and size == "cpu" else size,
        )  # fmt: skip

    return Measurement(task=f"tune-{kind}" if tuning else f"digits-{kind}", key=key, make=make)


def _tuned(rows: Sequence[Row], kind: str, optimizer: str) -> dict[float, float]:
    """Share of wrong answers at the end of the validation stream, by step size."""
    return {
        row["key"]["lr"]: 1 - row["result"].get("right", 0.0)
        for row in rows
        if row["task"] == f"tune-{kind}" and row["key"]["optimizer"] == optimizer
    }


def shown(rows: Sequence[Row]) -> str:
    """Means over the seeds, momenta kept beside momenta dropped; best first."""
    by: dict[tuple[str, bool], list[Row]] = {}
    for row in rows:
        by.setdefault((row["key"]["optimizer"], row["key"]["kept"]), []).append(row)
    names = sorted({name for name, _ in by}, key=lambda name: -_mean(by[name, True], "right"))
    lines = []
    for name in names:
        for kept in (True, False):
            same = by.get((name, kept), [])
            cells = [
                spread([100 * row["result"][value] for row in same if value in row["result"]], 1)
                for value in ("right", "forgetting", "just_learned")
            ]
            lr = ", ".join(sorted({f"{row['key']['lr']:g}" for row in same}))
            lines.append([TITLES.get(name, name), "kept" if kept else "dropped", *cells, lr])
    head = [
        "optimizer",
        "momenta",
        "right at the end, %",
        "forgetting",
        "just learned",
        "step size",
    ]
    return markdown(head, lines)


def _mean(rows: Sequence[Row], value: str) -> float:
    return statistics.fmean(row["result"].get(value, 0.0) for row in rows) if rows else 0.0


PLACES = (
    Place(task="digits-split", title="Learning on: digits two at a time", table=shown),
    Place(task="digits-permuted", title="Learning on: digits with permuted pixels", table=shown),
)
