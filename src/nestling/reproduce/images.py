"""Learn handwritten digits in parts, and keep them: the streams of the literature.

    R[i, j] = error rate on part j after learning part i

Two protocols, each with published numbers to hold ours against:

- *short*: one pass, an MLP of two layers of 100, SGD: Buzzega et al. 2020 (DER; ``mammoth``). The
  digits come in pairs, ten to a batch; or all of them, with other permutations of the pixels, 128.
- *long*: 2,000 steps of 128 images for each pair, an MLP of two layers of 400, Adam: van de Ven and
  Tolias 2019. Here 21 passes, which are 1,979 steps a pair on the average.

A learner is given images and, while it learns, digits; only those with ``told`` in their settings
hear where a part ends. For ``images-split-task`` the same learners are measured among the two
digits of a part; in the long stream of that kind the image itself tells the two. Step sizes and
strengths were chosen on training images that are not learned there, with another order of classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nestling.continual.protocol import Scorer
from nestling.continual.record import Record
from nestling.continual.run import run
from nestling.continual.scoring import error_rate, error_rate_within_task
from nestling.continual.stream import Stream, together
from nestling.reproduce import image_learners as learners
from nestling.reproduce.image_data import CLASSES, Kind, images
from nestling.reproduce.image_learners import Build, Heads, Perceptron, Settings
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of
from nestling.reproduce.rows import ERRORS

SHORT, LONG = 100, 400  # width of the hidden layers
MLP, PIXELS, FEATURES = "MLP", "pixels", "random features"
Strategies = Mapping[tuple[str, str], tuple[Build, Settings]]


@dataclass(frozen=True)
class Task:
    """A stream, how it is measured, the model that learns it, and by which strategies.

    Attributes:
        kind: of the stream.
        width: of the hidden layers.
        strategies: model and strategy, to how it is built and what was chosen.
        score: of a learner on a part.
        section: its title in the page, and the strategy that pictures hold against plain training.
    """

    kind: Kind
    width: int
    strategies: Strategies
    section: tuple[str, str]
    score: Scorer = error_rate


TEN = {"batch": 10}
TOLD = {**TEN, "told": True}
SPLIT: Strategies = {
    (MLP, "sequential"): (learners.plain, {**TEN, "lr": 0.03}),
    (MLP, "levels"): (learners.in_levels, {**TEN, "lr": 0.1, "periods": [10, 100, 1000]}),
    (MLP, "Adam"): (learners.plain_adam, {**TEN, "lr": 1e-3}),
    (MLP, "Adam, moments dropped"): (learners.plain_adam, {**TOLD, "lr": 1e-3}),
    (MLP, "low rank"): (learners.low_rank, {**TOLD, "lr": 0.1, "rank": 8}),
    (MLP, "EWC"): (learners.ewc, {**TOLD, "lr": 0.03, "strength": 100.0, "items": 1000}),
    (MLP, "LwF"): (learners.lwf, {**TOLD, "lr": 0.03, "strength": 3.0}),
    (MLP, "replay"): (learners.replay, {**TEN, "lr": 0.005, "stored": 200}),
    (MLP, "DER++"): (learners.dark, {**TEN, "lr": 0.03, "stored": 200, "alpha": 0.2}),
    (MLP, "joint"): (learners.plain, {**TEN, "lr": 0.1}),
    (PIXELS, "in context, 200"): (learners.window, {"batch": 100, "window": 200,
                                                    "temperature": 0.02}),
    (PIXELS, "in context, 2000"): (learners.window, {"batch": 100, "window": 2000,
                                                     "temperature": 0.02}),
    (PIXELS, "class means"): (learners.means, {"batch": 1000}),
    (PIXELS, "discriminant"): (learners.discriminant, {"batch": 1000, "shrinkage": 0.1,
                                                       "period": 10_000}),
    (FEATURES, "least squares"): (learners.least_squares,
                                  {"batch": 1000, "features": 2000, "ridge": 1e-4,
                                   "period": 10_000}),
}  # fmt: skip
WITHIN = ("sequential", "levels", "Adam", "Adam, moments dropped", "low rank", "EWC", "LwF",
          "replay", "DER++", "joint", "least squares")  # fmt: skip
MANY = {"batch": 128}
PERMUTED: Strategies = {
    (MLP, "sequential"): (learners.plain, {**MANY, "lr": 0.2}),
    (MLP, "levels"): (learners.in_levels, {**MANY, "lr": 0.5, "periods": [128, 512, 2048]}),
    (MLP, "EWC"): (learners.ewc, {**MANY, "told": True, "lr": 0.1, "strength": 10.0,
                                  "items": 1000}),
    (MLP, "replay"): (learners.replay, {**MANY, "lr": 0.1, "stored": 200}),
    (MLP, "DER++"): (learners.dark, {**MANY, "lr": 0.1, "stored": 200, "alpha": 1.0}),
    (MLP, "joint"): (learners.plain, {**MANY, "lr": 0.2}),
    (PIXELS, "class means"): (learners.means, {"batch": 1000}),
}  # fmt: skip
STEPS = {"batch": 128, "passes": 21, "lr": 1e-3}


def _long(strength: float) -> Strategies:
    """With the strength of EWC that the authors of the protocol publish for their own code."""
    told = {**STEPS, "told": True}
    return {
        (MLP, "sequential"): (learners.plain_adam, STEPS),
        (MLP, "EWC"): (learners.ewc_adam, {**told, "strength": strength, "items": 1000,
                                           "targets": "sampled"}),
        (MLP, "LwF"): (learners.growing_lwf, told),
        (MLP, "joint"): (learners.plain_adam, STEPS),
    }  # fmt: skip


TASKS = {
    "images-split": Task(
        "split", SHORT, SPLIT, ("Digits, two at a time: which of the ten?", "least squares")
    ),
    "images-split-task": Task(
        "split", SHORT, {key: made for key, made in SPLIT.items() if key[1] in WITHIN},
        ("Digits, two at a time: which of the two?", "low rank"), error_rate_within_task,
    ),
    "images-permuted": Task(
        "permuted", SHORT, PERMUTED, ("Digits with permuted pixels", "DER++")
    ),
    "images-split-long": Task(
        "split", LONG, _long(1e9), ("Long: which of the ten?", "LwF")
    ),
    "images-split-task-long": Task(
        "by task", LONG, _long(1e5), ("Long: which of the two, which are told?", "LwF")
    ),
    "images-split-domain-long": Task(
        "by domain", LONG, _long(1e10), ("Long: the first or the second of two?", "LwF")
    ),
}  # fmt: skip
SECTIONS = tuple(
    Section(task=name, title=task.section[0], ours=task.section[1]) for name, task in TASKS.items()
)


def jobs(data: Path, *, size: Size, change: Settings | None = None) -> list[Job]:
    """The rows of all streams of images.

    Args:
        data: folder with ``mnist`` in it.
        size: ``validation`` has one seed.
        change: settings that are not those chosen.
    """
    found = []
    for name, task in TASKS.items():
        for seed in (0, 1, 2) if size == "cpu" else (0,):
            for (model, strategy), (build, chosen) in task.strategies.items():
                known = {"task": task_of(name, size), "strategy": strategy, "model": model,
                         "seed": seed, "settings": {**chosen, **(change or {})}}  # fmt: skip
                make = partial(_learn, data, size, task, build, known)
                found.append(Job(**known, unit=ERRORS, joint=strategy == "joint", make=make))
    return found


def model_of(task: Task, seed: int) -> nn.Module:
    """A new model; in the short protocol with the initial weights of its reference (Xavier)."""
    torch.manual_seed(seed)
    if task.kind == "by task":
        return Heads(task.width)
    model = Perceptron(task.width, 2 if task.kind == "by domain" else CLASSES)
    if task.width == SHORT:
        for part in model:
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
    return model


def _learn(
    data: Path, size: Size, task: Task, build: Build, known: Mapping[str, Any],
    folder: Path, on_progress: OnProgress,
) -> Record:  # fmt: skip
    settings, seed = known["settings"], known["seed"]
    parts = images(data, task.kind, size=size, seed=seed)
    stream = Stream(
        [together(parts.train)] if known["strategy"] == "joint" else parts.train,
        batch=settings["batch"], passes=settings.get("passes", 1), seed=seed,
        boundaries=settings.get("told", False),
    )  # fmt: skip
    return run(
        build(model_of(task, seed), settings, seed), stream, parts.test, score=task.score,
        online=error_rate, folder=folder, every=2000, settings=known, on_progress=on_progress,
    )  # fmt: skip
