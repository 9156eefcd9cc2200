"""``python -m benchmarks.domains``: learn five kinds of text one after the other, and keep them.

    R[i, j] = bits per byte on held-out text of domain j after learning domain i

Books, Python, a German manual, Cherokee, C headers: every byte is seen once, no strategy but EWC
and LwF is told where a domain ends, and all use the same data in the same order. Step sizes and
strengths were chosen on ``--stream validation``, which shares no text with the test stream. A row
that is there is not computed again; one that was stopped half-way goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.domains_data import STREAMS, domains
from benchmarks.stream_rows import BITS, append, done, read, row_of
from nestling.continual.run import Progress, run
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import (
    EWC,
    Consolidated,
    DarkReplay,
    GradientLearner,
    LwF,
    Replay,
    Sequential,
)  # fmt: skip
from nestling.continual.stream import Stream, together
from nestling.levels import Consolidation
from nestling.models import LanguageModel, configure, match_parameters, parameter_count
from nestling.optim import adamw

BATCH, LENGTH, HELD_OUT, STORED = 8, 128, 96, 256

Settings = dict[str, Any]
Build = Callable[[LanguageModel, Settings, int], GradientLearner]


def _make(settings: Settings) -> Any:
    return partial(adamw, lr=settings["lr"])


def _slow(model: LanguageModel, settings: Settings, seed: int) -> GradientLearner:
    names = ("surprise", "period", "average", "dreams", "rehearsal", "weight")
    chosen = {name: settings[name] for name in names if name in settings}
    return Consolidated(
        model, _make(settings), vocabulary=model.vocab_size, seed=seed,
        consolidation=Consolidation(length=LENGTH, **chosen),
    )  # fmt: skip


STRATEGIES: dict[str, tuple[Build, Settings]] = {
    "sequential": (lambda m, s, seed: Sequential(m, _make(s)), {"lr": 1e-3}),
    "sequential 3e-3": (lambda m, s, seed: Sequential(m, _make(s)), {"lr": 3e-3}),
    "averaged": (_slow, {"lr": 2e-3, "surprise": None}),
    "EWC": (lambda m, s, seed: EWC(m, _make(s), strength=s["strength"], items=256),
            {"lr": 1e-3, "strength": 1e4}),
    "online EWC": (lambda m, s, seed: EWC(m, _make(s), strength=s["strength"], gamma=1.0,
                                          items=256), {"lr": 1e-3, "strength": 1e4}),
    "LwF": (lambda m, s, seed: LwF(m, _make(s), strength=s["strength"], temperature=1.0),
            {"lr": 1e-3, "strength": 1.0}),
    "replay": (lambda m, s, seed: Replay(m, _make(s), capacity=s["stored"], rows=BATCH // 2,
                                         seed=seed), {"lr": 2e-3, "stored": STORED}),
    "DER++": (lambda m, s, seed: DarkReplay(m, _make(s), capacity=s["stored"], rows=BATCH // 4,
                                            alpha=s["alpha"], beta=1.0, seed=seed),
              {"lr": 2e-3, "stored": STORED, "alpha": 0.05}),
    "consolidated": (_slow, {"lr": 2e-3}),
}  # fmt: skip
"""Name to how it is built and what was chosen for it on the validation stream."""

TOLD = ("EWC", "online EWC", "LwF")
"""Strategies that are told where a domain ends: without it they are plain training."""

JOINT: dict[str, tuple[Build, Settings]] = {
    "joint": (STRATEGIES["sequential"][0], {"lr": 1e-3}),
    "joint, averaged": (_slow, {"lr": 2e-3, "surprise": None}),
}


def model_of(preset: str, seed: int) -> LanguageModel:
    """A new model with as many parameters as the smallest Transformer++."""
    size = parameter_count(configure("transformer"))
    torch.manual_seed(seed)
    return LanguageModel(
        configure(preset) if preset == "transformer" else match_parameters(preset, size)
    )


def learn(options: argparse.Namespace, preset: str, strategy: str, seed: int, rows: Any) -> bool:
    """Make one row, unless it is there; whether it was made."""
    build, settings = {**STRATEGIES, **JOINT}[strategy]
    settings = {**settings, **options.set, "steps": options.steps}
    task = "domains" if options.stream == "test" else "domains-validation"
    known = {"task": task, "strategy": strategy, "model": preset, "seed": seed,
             "settings": settings}  # fmt: skip
    if done(rows, **known):
        return False
    data = domains(options.data, options.stream, rows=options.steps * BATCH, held_out=HELD_OUT,
                   length=LENGTH, names=options.domains)  # fmt: skip
    joint = strategy in JOINT
    learned = [together(data.train)] if joint else data.train
    stream = Stream(learned, batch=BATCH, seed=seed, boundaries=strategy in TOLD)
    learner = build(model_of(preset, seed), settings, seed)
    name = "-".join([task, preset, strategy, str(seed), *(f"{k}{v}" for k, v in settings.items())])
    record = run(
        learner, stream, data.test, score=bits_per_target, folder=options.work / name, every=10**9,
        settings=known, on_progress=progress(f"{preset} {strategy} {seed}"),
    )  # fmt: skip
    row = row_of(record, **known, unit=BITS, joint=joint)
    if isinstance(learner, Consolidated):
        row["consolidated"] = {"surprises": learner.slow.surprises, "written": learner.slow.written}
    append(row, options.out)
    numbers = {k: round(v, 3) for k, v in record.metrics().items()}
    print(f"{preset} {strategy} {seed} {settings}: {numbers}", flush=True)
    return True


def progress(title: str) -> Callable[[Progress], None]:
    """Say now and then how far it is, and how long it will still take."""
    began, said = time.monotonic(), [0.0]

    def say(now: Progress) -> None:
        passed = time.monotonic() - began
        if passed - said[0] > 20 and now.batches:
            said[0] = passed
            left = passed / now.batches * (now.total - now.batches)
            print(f"{title}: {now.batches} of {now.total} batches, {left:.0f} s left",
                  file=sys.stderr, flush=True)  # fmt: skip

    return say


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER, got {text!r}")
    if value == "none":
        return name, None
    return name, float(value) if "." in value or "e" in value else int(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.domains")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--stream", choices=STREAMS, default="test")
    parser.add_argument("--domains", nargs="*", default=[], help="only these, in this order")
    parser.add_argument("--models", nargs="+", default=["transformer", "hope"])
    parser.add_argument("--strategies", nargs="+", default=[*STRATEGIES, *JOINT],
                        choices=[*STRATEGIES, *JOINT])  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200, help="batches of a domain")
    parser.add_argument("--set", nargs="*", type=_setting, default=[], metavar="NAME=NUMBER")
    parser.add_argument("--out", type=Path, default=None, help="file of the rows")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "domains",
                        help="folder of unfinished runs")  # fmt: skip
    options = parser.parse_args(arguments)
    options.set = dict(options.set)
    options.work.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for preset in options.models:
            for strategy in options.strategies:
                rows = read() if options.out is None else read(options.out)
                learn(options, preset, strategy, seed, rows)


if __name__ == "__main__":
    main()
