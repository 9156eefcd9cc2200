"""Classes of intents that come in groups, on a pre-trained encoder (NL Fig. 6).

    R[i, j] = error rate on the texts of group j, answered among all classes, after learning group i

Every text is learned from once, no strategy is told the group of a text that it is asked, and what
a strategy is given is the same for all: ids of tokens. The closed-form ones read features of the
held encoder; the others train its last MLP and a head. Joint training sees all groups at once, also
once. Extra ``encoders``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from nestling.continual.protocol import Learner
from nestling.continual.record import Record
from nestling.continual.run import run
from nestling.continual.sources import by_class
from nestling.continual.strategies import (
    EWC,
    ClassMeans,
    DarkReplay,
    FourierFeatures,
    InContext,
    LeastSquares,
    LowRank,
    LwF,
    NestedDiscriminant,
    Pairs,
    RandomFeatures,
    Replay,
    Sequential,
    StreamingDiscriminant,
)
from nestling.continual.stream import Stream, together
from nestling.reproduce.intent_texts import GROUPS, Intents, intents
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of
from nestling.reproduce.rows import ERRORS
from nestling.shapes import Tensor

MODEL = "MiniLM-L6"
BATCH, LENGTH, HELD = 32, 32, 5
"""Texts of a step, the most tokens of a text, blocks below the MLP that is trained."""

DEPTHS = (4, 5, 6)
PERIOD = 1000  # texts between two solves for the online curve
TITLES = {"clinc": "CLINC", "banking": "Banking", "dbpedia": "DBpedia"}
OURS = "nested discriminant, three depths"
SECTIONS = tuple(
    Section(task=f"intents-{name}", title=f"{title}: classes in groups", ours=OURS)
    for name, title in TITLES.items()
)

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A set of texts, and what the held encoder makes of them.

    Attributes:
        texts: and their classes.
        train, test: ids of their tokens, ``(N, T)``.
        features: ids to the sentence feature.
        depths: ids to the features of the depths ``DEPTHS``, side by side.
        lower: ids to what the last MLP reads.
        encoder: all of it.
    """

    texts: Intents
    train: Tensor
    test: Tensor
    features: Any
    depths: Any
    lower: Any
    encoder: Any


Build = Callable[[Prepared, Settings, int], Learner]


def _frozen(kind: Any, *names: str, deep: bool = False, **more: Any) -> Build:
    """A closed-form strategy on features that are held."""

    def build(prepared: Prepared, settings: Settings, seed: int) -> Learner:
        read = prepared.depths if deep else prepared.features
        width = prepared.encoder.width * (len(DEPTHS) if deep else 1)
        chosen = {name: settings[name] for name in names}
        return kind(read, width, prepared.texts.classes, **chosen, **more)

    return build


def _expanded(kind: Any, expand: Callable[..., Any], *names: str, deep: bool = False) -> Build:
    """The same on random features of these."""

    def build(prepared: Prepared, settings: Settings, seed: int) -> Learner:
        read = prepared.depths if deep else prepared.features
        width = prepared.encoder.width * (len(DEPTHS) if deep else 1)
        drawn = expand(width, settings)
        chosen = {name: settings[name] for name in names}
        return kind(
            lambda ids: drawn(read(ids)), settings["random"], prepared.texts.classes,
            period=PERIOD, **chosen,
        )  # fmt: skip

    return build


def _trained(learner: Callable[..., Learner]) -> Build:
    """A strategy that moves the last MLP and a head."""

    def build(prepared: Prepared, settings: Settings, seed: int) -> Learner:
        from nestling.hf.encoder import Classifier, Upper

        torch.manual_seed(seed)
        upper = Upper(prepared.encoder, prepared.lower, held=HELD)
        model = Classifier(upper, prepared.texts.classes)
        return learner(model, partial(_adamw, settings), settings, seed)

    return build


def _adamw(settings: Settings, named: Mapping[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    head = [p for name, p in named.items() if name.startswith("head")]
    rest = [p for name, p in named.items() if not name.startswith("head")]
    groups = [{"params": rest, "lr": settings["lr"]}, {"params": head, "lr": settings["head_lr"]}]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def _fourier(width: int, settings: Settings) -> FourierFeatures:
    # |x|^2 is the number of depths: the kernel is of their mean distance.
    return FourierFeatures(width, settings["random"], gamma=settings["gamma"] * 384 / width)


_STEP = {"lr": 1e-4, "head_lr": 1e-3}
_SEQUENTIAL = _trained(lambda model, make, s, seed: Sequential(model, make))
STRATEGIES: dict[str, tuple[Build, Settings]] = {
    "class means": (_frozen(ClassMeans), {}),
    "LDA": (_frozen(StreamingDiscriminant, "shrinkage", period=PERIOD), {"shrinkage": 1e-2}),
    "LDA, three depths": (
        _frozen(StreamingDiscriminant, "shrinkage", deep=True, period=PERIOD),
        {"shrinkage": 1e-3}),
    "kernel LDA": (
        _expanded(StreamingDiscriminant, _fourier, "shrinkage"),
        {"random": 3000, "gamma": 0.1, "shrinkage": 1e-2}),
    "kernel LDA, three depths": (
        _expanded(StreamingDiscriminant, _fourier, "shrinkage", deep=True),
        {"random": 3000, "gamma": 0.1, "shrinkage": 5e-2}),
    "least squares": (_frozen(LeastSquares, "ridge", period=PERIOD), {"ridge": 1e-3}),
    "least squares, random features": (
        _expanded(LeastSquares, lambda width, s: RandomFeatures(width, s["random"]), "ridge"),
        {"random": 3000, "ridge": 1e-3}),
    "in context": (
        _frozen(InContext, "window", "temperature"), {"window": 1000, "temperature": 0.05}),
    "nested discriminant": (
        _frozen(NestedDiscriminant, "rank", "own", "shrinkage", period=PERIOD),
        {"rank": 8, "own": 0.2, "shrinkage": 1e-2}),
    OURS: (
        _frozen(NestedDiscriminant, "rank", "own", "shrinkage", deep=True, period=PERIOD),
        {"rank": 8, "own": 0.2, "shrinkage": 1e-2}),
    "joint": (_SEQUENTIAL, _STEP),
    "joint, five passes": (_SEQUENTIAL, {**_STEP, "passes": 5}),
    "sequential": (_SEQUENTIAL, _STEP),
    "EWC": (
        _trained(lambda model, make, s, seed: EWC(
            model, make, strength=s["strength"], items=128, seed=seed)),
        {**_STEP, "strength": 1e4}),
    "LwF": (
        _trained(lambda model, make, s, seed: LwF(model, make, strength=s["strength"])),
        {**_STEP, "strength": 0.1}),
    "low rank": (
        _trained(lambda model, make, s, seed: LowRank(
            model, make, pairs=Pairs(rank=s["rank"], trained=("head",)), seed=seed)),
        {**_STEP, "lr": 1e-3, "rank": 8}),
    "replay": (
        _trained(lambda model, make, s, seed: Replay(
            model, make, capacity=s["stored"], seed=seed)),
        {**_STEP, "stored": 500}),
    "DER++": (
        _trained(lambda model, make, s, seed: DarkReplay(
            model, make, capacity=s["stored"], rows=BATCH // 2, alpha=s["alpha"], seed=seed)),
        {**_STEP, "stored": 500, "alpha": 0.1}),
}  # fmt: skip
"""Name to how it is built and what was chosen for it on held-out training texts."""

JOINT = ("joint", "joint, five passes")
"""All groups at once; the second is a bound for what more passes would give, not a fair rival."""

SMOKE = ("LDA", OURS, "joint", "sequential")
TOLD = ("EWC", "LwF", "low rank")
"""Strategies that are told where a group ends: without it they are plain training."""


def jobs(data: Path, *, size: Size, change: Settings | None = None) -> list[Job]:
    """The rows of the three sets.

    Args:
        data: folder of the data sets.
        size: ``validation`` learns nine tenths of the training texts and measures on the rest.
        change: settings that are not those chosen.
    """
    found = []
    for name in ("clinc",) if size == "smoke" else GROUPS:
        for seed in (0, 1, 2) if size == "cpu" else (0,):
            for strategy, (_, chosen) in STRATEGIES.items():
                if size == "smoke" and strategy not in SMOKE:
                    continue
                known = {"task": task_of(f"intents-{name}", size), "strategy": strategy,
                         "model": MODEL, "seed": seed,
                         "settings": {**chosen, **(change or {})}}  # fmt: skip
                make = partial(_record, data, name, size, known)
                found.append(Job(**known, unit=ERRORS, joint=strategy in JOINT, make=make))
    return found


@lru_cache(maxsize=1)
def prepared(data: Path, name: str, size: Size) -> Prepared:
    """A set of texts, read and sent through the held encoder once."""
    from nestling.hf.encoder import Lower, Remembered, packaged_encoder

    encoder, texts = packaged_encoder(), intents(data, name, size)
    ids = encoder.ids([*texts.train, *texts.test], length=LENGTH)
    short_first = ids[encoder.mask(ids).sum(1).argsort(stable=True)]  # little padding in a batch
    depths = Remembered(lambda rows: encoder.features(rows, DEPTHS))
    depths.remember(short_first)
    lower = Remembered(Lower(encoder, HELD), half=True)
    lower.remember(short_first)
    last = slice(-encoder.width, None)
    return Prepared(
        texts=texts, train=ids[: len(texts.train)], test=ids[len(texts.train) :],
        features=lambda rows: depths(rows)[:, last], depths=depths, lower=lower, encoder=encoder,
    )  # fmt: skip


def _record(
    data: Path, name: str, size: Size, known: Mapping[str, Any], folder: Path,
    on_progress: OnProgress,
) -> Record:  # fmt: skip
    strategy, seed, there = known["strategy"], known["seed"], prepared(data, name, size)
    groups = there.texts.groups(seed)
    train = by_class(there.train, there.texts.learned, groups, name="group")
    test = by_class(there.test, there.texts.measured, groups, name="group")
    stream = Stream(
        [together(train)] if strategy in JOINT else train,
        batch=BATCH, seed=seed, boundaries=strategy in TOLD,
        passes=known["settings"].get("passes", 1),
    )  # fmt: skip
    learner = STRATEGIES[strategy][0](there, known["settings"], seed)
    settings = {**known, "length": LENGTH, "held": HELD}
    return run(learner, stream, test, folder=folder, every=1000, settings=settings,
               online="nats", on_progress=on_progress)  # fmt: skip
