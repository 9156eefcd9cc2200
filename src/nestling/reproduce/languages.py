"""Learn languages one after the other, and keep them (a stand-in for NL Fig. 8).

    R[i, j] = bits per byte on held-out verses of language j after learning language i

English, Cherokee, Ewe, Manx, Potawatomi: verses of one book, every byte seen once, no strategy is
told where a language ends. "More levels forget less" is measured in two forms:

    extra levels:   one more MLP in each block for every level, moved by its own clock (NL Eq. 71);
                    as many parameters in all
    slow levels:    that many averages behind each other, each of which dreams and holds the weights
                    (:mod:`nestling.continual.strategies.chained`), by the clock alone

Settings were chosen on other languages (``validation``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nestling.continual.protocol import Learner
from nestling.continual.record import Record
from nestling.continual.run import run
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import Averaged, Consolidated, Replay, Sequential
from nestling.continual.strategies.chained import Chained, slower
from nestling.continual.stream import Stream, together
from nestling.levels import Consolidation
from nestling.models import LanguageModel, configure, match_parameters, parameter_count
from nestling.optim import adamw
from nestling.reproduce import domains
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of
from nestling.reproduce.rows import BITS
from nestling.reproduce.verses import STREAMS, languages

BATCH, LENGTH, STORED = 8, 128, 256
TASK = "languages"
SECTIONS = (Section(task=TASK, title="Languages one after the other"),)
HELD_OUT = {"smoke": 4, "cpu": 64, "validation": 64}
STEPS = {"smoke": 2, "cpu": 100, "validation": 100}
SEEDS = {"smoke": (0,), "cpu": (0, 1, 2), "validation": (0,)}

Settings = Mapping[str, Any]
Build = Callable[[LanguageModel, Settings, int], Learner]

JOINT = "joint"
EXTRA = {f"{n} extra level{'s' * (n > 1)}": n for n in (1, 2, 3)}
SLOW = {f"{n} slow level{'s' * (n > 1)}": n for n in (1, 2, 3)}
CLOCK, FACTOR = 4096, 4
"""Targets between two moves of the first extra level, and how much slower each next one is."""


def extra_periods(levels: int) -> tuple[int, ...]:
    """Periods of a chain with so many levels behind the one that moves with every step.

    >>> extra_periods(0), extra_periods(2)
    ((1,), (1, 4096, 16384))
    """
    return (1, *(CLOCK * FACTOR**place for place in range(levels)))


def plain(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    """What is learned is learned, nothing is held."""
    return Sequential(model, partial(adamw, lr=settings["lr"]))


def averaged(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    """The same, answered by the running average: what a slow level is without dreams."""
    return Averaged(Sequential(model, partial(adamw, lr=settings["lr"])))


def replay(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    """With some of what was, half as much as is new."""
    return Replay(
        model, partial(adamw, lr=settings["lr"]), capacity=settings["stored"], rows=BATCH // 2,
        seed=seed,
    )  # fmt: skip


def consolidated(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    """One slow level whose periods end by surprise."""
    return Consolidated(
        model, partial(adamw, lr=settings["lr"]), vocabulary=model.vocab_size, seed=seed,
        consolidation=Consolidation(length=LENGTH),
    )  # fmt: skip


def chained(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    """``levels`` slow ones whose periods end by the clock."""
    fastest = Consolidation(
        surprise=None, length=LENGTH,
        **{name: settings[name] for name in ("period", "dreams", "weight")},
    )  # fmt: skip
    return Chained(
        model, partial(adamw, lr=settings["lr"]), vocabulary=model.vocab_size, seed=seed,
        chain=slower(fastest, settings["levels"], factor=FACTOR),
    )  # fmt: skip


SLOWLY = {"lr": 2e-3, "period": 16_384, "dreams": 64, "weight": 2.0}

STRATEGIES: dict[str, tuple[Build, Settings]] = {
    "sequential": (plain, {"lr": 1e-3}),
    **{name: (plain, {"lr": 1e-3, "levels": n}) for name, n in EXTRA.items()},
    "averaged": (averaged, {"lr": 2e-3}),
    "consolidated": (consolidated, {"lr": 2e-3}),
    **{name: (chained, {**SLOWLY, "levels": n}) for name, n in SLOW.items()},
    "replay": (replay, {"lr": 2e-3, "stored": STORED}),
    JOINT: (plain, {"lr": 1e-3}),
}
"""Name to how it is built and what was chosen for it."""

HOPE = ("sequential", "consolidated", "replay", JOINT)
"""What Hope, which takes four times as long, is run with; two extra levels are its own."""


def jobs(data: Path, *, size: Size, change: Settings | None = None) -> list[Job]:
    """The rows of the stream of languages.

    Args:
        data: folder of the verses.
        size: ``validation`` has other languages.
        change: settings that are not those chosen.
    """
    found = []
    for seed in SEEDS[size]:
        for preset in ("transformer",) if size == "smoke" else ("transformer", "hope"):
            for strategy in STRATEGIES if preset == "transformer" else HOPE:
                settings = {**STRATEGIES[strategy][1], **(change or {}), "steps": STEPS[size]}
                known = {"task": task_of(TASK, size), "strategy": strategy, "model": preset,
                         "seed": seed, "settings": settings}  # fmt: skip
                make = partial(_learn, data, size, known)
                found.append(Job(**known, unit=BITS, joint=strategy == JOINT, make=make))
    return found


def model_of(preset: str, seed: int, *, extra: int = 0) -> LanguageModel:
    """A new model with as many parameters as the smallest Transformer++.

    >>> [sum(p.numel() for p in model_of("transformer", 0, extra=n).parameters()) for n in (0, 3)]
    [434816, 435584]
    """
    if not extra:
        return domains.model_of(preset, seed)
    size = parameter_count(configure("transformer"))
    torch.manual_seed(seed)
    return LanguageModel(match_parameters(preset, size, periods=extra_periods(extra)))


def _learn(
    data: Path, size: Size, known: Mapping[str, Any], folder: Path, on_progress: OnProgress
) -> Record:
    strategy, settings, seed = known["strategy"], known["settings"], known["seed"]
    names = STREAMS["validation" if size == "validation" else "test"]
    texts = languages(
        data, names, rows=settings["steps"] * BATCH, held_out=HELD_OUT[size], length=LENGTH
    )
    learned = [together(texts.train)] if strategy == JOINT else texts.train
    stream = Stream(learned, batch=BATCH, seed=seed, boundaries=False)
    model = model_of(known["model"], seed, extra=EXTRA.get(strategy, 0))
    learner = STRATEGIES[strategy][0](model, settings, seed)
    return run(learner, stream, texts.test, score=bits_per_target, folder=folder,
               settings=known, on_progress=on_progress)  # fmt: skip
