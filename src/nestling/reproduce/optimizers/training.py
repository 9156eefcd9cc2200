"""NL Fig. 11 in small: a vision transformer on digits, and two models of bytes on books.

    loss(step) for each optimizer; the step size of each is chosen on a validation set, seed 100,
    on a grid of factors of two or three; then three seeds are measured on a test set.

All methods see the same batches in the same order, warm up for a tenth of the steps and end at a
tenth of their step size along a cosine; gradients are clipped at norm 1.
"""

from __future__ import annotations

import dataclasses
import json
import lzma
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestling.models import build
from nestling.reproduce.image_data import digits
from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measurement, Row, Say
from nestling.reproduce.optimizers.methods import ABLATIONS, METHODS, TUNING, Method, next_steps
from nestling.reproduce.optimizers.vision import VisionTransformer
from nestling.shapes import Tensor
from nestling.train.schedule import warmup_cosine

CLIP, FLOOR, SEEDS = 1.0, 0.1, (0, 1, 2)
POINTS, FEW = 10, 1000
"""Measurements along a run, each on a few of the held-out examples; at the end on all of them."""

Batch = tuple[Tensor, Tensor]
Part = str  # "train", "validation" or "test"


@dataclass(frozen=True)
class Problem:
    """A model and data to train it on.

    Attributes:
        name: for tables.
        model: a new one.
        data: from a folder and a part, examples ``(N, ...)`` as inputs and targets.
        batch, steps: of a run.
        unit: of the loss.
        methods: the optimizers that are measured; empty: all.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[Path, Part], Batch]
    batch: int
    steps: int
    unit: str
    methods: tuple[str, ...] = ()


def _digits(data: Path, part: Part) -> Batch:
    items = digits(data, "t10k" if part == "test" else "train")
    keep = {"train": slice(0, 50_000), "validation": slice(50_000, None), "test": slice(None)}
    items = items.rows(keep[part])
    return (items.inputs.float() / 255 - 0.1307) / 0.3081, items.targets


BYTES, LENGTH = 6_000_000, 128


@lru_cache(maxsize=2)
def _books(data: Path, part: Part) -> Batch:
    """Rows of bytes: from books to learn, and from others, half to choose by, half to measure."""
    file = "train" if part == "train" else "valid"
    texts: list[str] = []
    with lzma.open(data / f"books_pg19like/{file}.jsonl.xz", "rt", encoding="utf8") as handle:
        for line in handle:
            texts.append(json.loads(line)["text"])
            if sum(map(len, texts)) >= BYTES:
                break
    if part != "train":
        texts = texts[::2] if part == "validation" else texts[1::2]
    ids = torch.frombuffer(bytearray("\n".join(texts).encode()), dtype=torch.uint8).long()
    rows = ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    if part != "train":
        rows = rows[:: max(1, len(rows) // 256)][:256]
    return rows[:, :-1], rows[:, 1:]


class _Scores(nn.Module):
    """A language model that gives its scores alone."""

    def __init__(self, preset: str, **overrides: Any) -> None:
        super().__init__()
        self.model = build(preset, **overrides)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids)[0].flatten(0, 1)


SHAPE = {"width": 128, "heads": 4, "layers": 2}
PROBLEMS = {
    "vit": Problem("ViT on digits", VisionTransformer, _digits, 128, 400, "nats"),
    "transformer": Problem(
        "Transformer on books",
        partial(_Scores, "transformer", **SHAPE),
        _books,
        16,
        300,
        "bits",
        ("AdamW", "Muon", "AdaMuon", "M3", "momentum", "delta momentum"),
    ),
    "hope": Problem(
        "Hope on books",
        partial(_Scores, "hope", **SHAPE, periods=(1,)),
        _books,
        8,
        120,
        "bits",
        ("AdamW", "Muon", "AdaMuon", "M3"),
    ),
}


def run(
    problem: Problem, method: Method, data: Path, *, lr: float, seed: int, part: Part, say: Say
) -> dict[str, Any]:
    """Train once; losses along the way, or where it stopped being finite."""
    inputs, targets = problem.data(data, "train")
    held = problem.data(data, part)
    torch.manual_seed(seed)
    model = problem.model()
    optimizers = method.make(model, lr)
    bases = [[group["lr"] for group in one.param_groups] for one in optimizers]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    factor = 1 / math.log(2) if problem.unit == "bits" else 1.0
    losses: list[float] = []
    curve: list[tuple[int, float, float]] = []
    warmup, spent = problem.steps // 10, 0.0
    for step in range(problem.steps):
        began = time.perf_counter()
        at = torch.arange(step * problem.batch, (step + 1) * problem.batch) % len(order)
        rows = order[at]
        loss = F.cross_entropy(model(inputs[rows]), targets[rows].flatten())
        loss.backward()
        losses.append(float(loss.detach()) * factor)
        if not math.isfinite(losses[-1]):
            return {"diverged": step, "steps": problem.steps}
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scale = warmup_cosine(step, steps=problem.steps, warmup=warmup, floor=FLOOR)
        for one, base in zip(optimizers, bases, strict=True):
            for group, own in zip(one.param_groups, base, strict=True):
                group["lr"] = own * scale
            one.step()
            one.zero_grad()
        spent += time.perf_counter() - began
        if (step + 1) % (problem.steps // POINTS) == 0:
            last = step + 1 == problem.steps
            score, wrong = measure(model, held if last else (held[0][:FEW], held[1][:FEW]))
            recent = statistics.fmean(losses[-(problem.steps // POINTS) :])
            curve.append((step + 1, recent, score * factor))
            say(f"step {step + 1} of {problem.steps}: {curve[-1][2]:.4f}")
    if not math.isfinite(curve[-1][2]):
        return {"diverged": problem.steps, "steps": problem.steps}
    return {
        "held_out": curve[-1][2], "train": curve[-1][1], "error": wrong, "curve": curve,
        "steps": problem.steps, "step_seconds": spent / problem.steps,
    }  # fmt: skip


@torch.no_grad()
def measure(model: nn.Module, held: Batch) -> tuple[float, float]:
    """Mean loss in nats and share of wrong answers."""
    total, wrong, count = 0.0, 0, 0
    for inputs, targets in _chunks(held, 256):
        scores, right = model(inputs), targets.flatten()
        total += float(F.cross_entropy(scores, right, reduction="sum"))
        wrong += int((scores.argmax(-1) != right).sum())
        count += len(right)
    return total / count, wrong / count


def _chunks(held: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, len(held[0]), size):
        yield held[0][start : start + size], held[1][start : start + size]


def tuned(rows: Sequence[Row], problem: str, optimizer: str) -> dict[float, float]:
    """Loss on the validation set by step size; infinite where it diverged."""
    return {
        row["key"]["lr"]: row["result"].get("held_out", math.inf)
        for row in rows
        if row["task"] == f"tune-{problem}" and row["key"]["optimizer"] == optimizer
    }


def _measurement(
    problem: Problem, method: Method, data: Path, task: str, key: Mapping[str, Any]
) -> Measurement:
    part = "validation" if key["seed"] == TUNING else "test"

    def make(say: Say) -> dict[str, Any]:
        return run(problem, method, data, lr=key["lr"], seed=key["seed"], part=part, say=say)

    return Measurement(task=task, key=key, make=make)


def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """NL Fig. 11: first the step sizes, then seeds with the best of them."""
    found: list[Measurement] = []
    for name in PROBLEMS:
        problem = of_size(name, size)
        for optimizer, method in METHODS.items():
            if problem.methods and optimizer not in problem.methods:
                continue
            done, make = tuned(rows, name, optimizer), partial(_measurement, problem, method, data)
            missing = next_steps(method.grid, done)
            key = {"optimizer": optimizer}
            if missing:
                found += [make(f"tune-{name}", {**key, "lr": lr, "seed": TUNING}) for lr in missing]
                continue
            best = min(done, key=lambda lr: done[lr])
            seeds = SEEDS if size == "cpu" else SEEDS[:1]
            found += [make(f"learn-{name}", {**key, "lr": best, "seed": seed}) for seed in seeds]
    return found


def ablations(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
    """M3 with one part changed at a time, on the vision transformer, at M3's own step size."""
    done = tuned(rows, "vit", "M3")
    if not done or next_steps(METHODS["M3"].grid, done):
        return []  # it is chosen first
    best = min(done, key=lambda lr: done[lr])
    seeds = SEEDS if size == "cpu" else SEEDS[:1]
    return [
        _measurement(of_size("vit", size), Method(make), data, "ablate-vit",
                     {"optimizer": name, "lr": best, "seed": seed})
        for name, make in ABLATIONS.items()
        for seed in seeds
    ]  # fmt: skip


def of_size(name: str, size: Size) -> Problem:
    """A problem, as it is or for a quick look."""
    whole = PROBLEMS[name]
    return dataclasses.replace(whole, batch=8, steps=POINTS) if size == "smoke" else whole
