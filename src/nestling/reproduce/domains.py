"""Learn five kinds of text one after the other, and keep them.

    R[i, j] = bits per byte on held-out text of domain j after learning domain i

Books, Python, a German manual, Cherokee, C headers: every byte is seen once, no strategy but those
of ``TOLD`` is told where a domain ends, and all use the same data in the same order. Step sizes and
strengths were chosen on the validation stream, which shares no text with the test stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nestling.continual.protocol import Learner
from nestling.continual.record import Record
from nestling.continual.run import run
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import (
    EWC,
    Averaged,
    Consolidated,
    DarkReplay,
    LwF,
    Replay,
    Sequential,
)
from nestling.continual.stream import Stream, together
from nestling.levels import Consolidation
from nestling.models import LanguageModel, configure, match_parameters, parameter_count
from nestling.optim import adamw
from nestling.reproduce.domain_texts import domains
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of
from nestling.reproduce.rows import BITS

BATCH, LENGTH, STORED = 8, 128, 256
TASK = "domains"
SECTIONS = (Section(task=TASK, title="Domain stream"),)
HELD_OUT = {"smoke": 4, "cpu": 96, "validation": 96}
STEPS = {"smoke": 2, "cpu": 200, "validation": 200}

Settings = Mapping[str, Any]
Build = Callable[[LanguageModel, Settings, int], Learner]


def _make(settings: Settings) -> Any:
    return partial(adamw, lr=settings["lr"])


def _replay(model: LanguageModel, settings: Settings, seed: int) -> Replay:
    return Replay(model, _make(settings), capacity=settings["stored"], rows=BATCH // 2, seed=seed)


def _slow(model: LanguageModel, settings: Settings, seed: int) -> Learner:
    names = ("surprise", "shift", "period", "average", "dreams", "rehearsal", "weight")
    chosen = {name: settings[name] for name in names if name in settings}
    return Consolidated(
        model, _make(settings), vocabulary=model.vocab_size, seed=seed,
        consolidation=Consolidation(length=LENGTH, **chosen),
    )  # fmt: skip


STRATEGIES: dict[str, tuple[Build, Settings]] = {
    "sequential": (lambda m, s, seed: Sequential(m, _make(s)), {"lr": 1e-3}),
    "averaged": (lambda m, s, seed: Averaged(Sequential(m, _make(s))), {"lr": 2e-3}),
    "EWC": (lambda m, s, seed: EWC(m, _make(s), strength=s["strength"], items=256),
            {"lr": 1e-3, "strength": 1e4}),
    "online EWC": (lambda m, s, seed: EWC(m, _make(s), strength=s["strength"], gamma=1.0,
                                          items=256), {"lr": 1e-3, "strength": 1e4}),
    "LwF": (lambda m, s, seed: LwF(m, _make(s), strength=s["strength"], temperature=1.0),
            {"lr": 1e-3, "strength": 1.0}),
    "replay": (_replay, {"lr": 2e-3, "stored": STORED}),
    "replay, averaged": (lambda m, s, seed: Averaged(_replay(m, s, seed)),
                         {"lr": 2e-3, "stored": STORED}),
    "DER++": (lambda m, s, seed: DarkReplay(m, _make(s), capacity=s["stored"], rows=BATCH // 4,
                                            alpha=s["alpha"], beta=1.0, seed=seed),
              {"lr": 2e-3, "stored": STORED, "alpha": 0.05}),
    "consolidated": (_slow, {"lr": 2e-3}),
    "consolidated, tokens noticed": (_slow, {"lr": 2e-3, "shift": 4.5}),
    "joint": (lambda m, s, seed: Sequential(m, _make(s)), {"lr": 1e-3}),
    "joint, averaged": (lambda m, s, seed: Averaged(Sequential(m, _make(s))), {"lr": 2e-3}),
}  # fmt: skip
"""Name to how it is built and what was chosen for it on the validation stream."""

TOLD = ("EWC", "online EWC", "LwF")
"""Strategies that are told where a domain ends: without it they are plain training."""

JOINT = ("joint", "joint, averaged")
"""All domains at once: what could be known of them."""


def jobs(
    data: Path,
    *,
    size: Size,
    names: Sequence[str] = (),
    change: Settings | None = None,
) -> list[Job]:
    """The rows of the domain stream.

    Args:
        data: folder of the texts.
        size: ``validation`` is the other stream, with one seed.
        names: of the domains, in this order; none: all.
        change: settings that are not those chosen.
    """
    smoke, found = size == "smoke", []
    for seed in (0, 1, 2) if size == "cpu" else (0,):
        for preset in ("transformer",) if smoke else ("transformer", "hope"):
            for strategy, (_, chosen) in STRATEGIES.items():
                settings = {**chosen, **(change or {}), "steps": STEPS[size]}
                known = {"task": task_of(TASK, size), "strategy": strategy, "model": preset,
                         "seed": seed, "settings": settings}  # fmt: skip
                make = partial(_record, data, size, tuple(names), known)
                found.append(Job(**known, unit=BITS, joint=strategy in JOINT, make=make))
    return found


def model_of(preset: str, seed: int) -> LanguageModel:
    """A new model with as many parameters as the smallest Transformer++."""
    size = parameter_count(configure("transformer"))
    torch.manual_seed(seed)
    return LanguageModel(
        configure(preset) if preset == "transformer" else match_parameters(preset, size)
    )


def learned(
    data: Path, size: Size, names: Sequence[str], known: Mapping[str, Any], folder: Path,
    on_progress: OnProgress,
) -> tuple[Learner, Record]:  # fmt: skip
    """The learner at the end of the stream, and what was measured on the way.

    Args:
        data, size, names: as for :func:`jobs`.
        known: the key of the job.
        folder: of its checkpoints; a run that is finished there is only read.
        on_progress: told how far it is.
    """
    strategy, settings, seed = known["strategy"], known["settings"], known["seed"]
    texts = domains(
        data, "validation" if size == "validation" else "test", rows=settings["steps"] * BATCH,
        held_out=HELD_OUT[size], length=LENGTH, names=names,
    )  # fmt: skip
    parts = [together(texts.train)] if strategy in JOINT else texts.train
    stream = Stream(parts, batch=BATCH, seed=seed, boundaries=strategy in TOLD)
    learner = STRATEGIES[strategy][0](model_of(known["model"], seed), settings, seed)
    record = run(learner, stream, texts.test, score=bits_per_target, folder=folder, every=200,
                 settings=known, on_progress=on_progress)  # fmt: skip
    return learner, record


def _record(*arguments: Any) -> Record:
    return learned(*arguments)[1]
