"""Translate one language, then another, into English (a stand-in for NL Fig. 8).

    row:     0 ... 0  source  1  target  0        subwords; the padding in front is not predicted
    R[i, j]  = bits per byte of the English of held-out verses of language j, given the source
    or       = 100 - chrF of greedy translations of the same verses (Popovic 2015)

A model that has learned English (verses of which words were left out, written anew) learns language
A, then B, and is measured on both. "Alone" is a model that learned B only; A alone is the row after
A. The floor learns from shuffled sources: what English alone is worth. A model that dreams of
translations must be able to write a source, so every strategy learns the sources too; only the
target is measured.

    extra levels:   one more MLP in front of each that has learned English, silent at first; the
                    slowest clock is that of the old one (NL 7.3)
    slow levels:    as for :mod:`nestling.reproduce.languages`
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestling.continual.protocol import IGNORED, Experience, Learner, Predictor
from nestling.continual.record import Record
from nestling.continual.run import Probes, run
from nestling.continual.strategies import GradientLearner, Sequential
from nestling.continual.strategies.chained import Chained, slower
from nestling.continual.stream import Stream, together
from nestling.layers import ContinuumConfig
from nestling.levels import Consolidation
from nestling.models import LanguageModel, configure, with_levels
from nestling.optim import adamw
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of
from nestling.reproduce.languages import EXTRA, FACTOR, JOINT, SEEDS, SLOW, extra_periods
from nestling.reproduce.rows import BITS, CHRF
from nestling.reproduce.subwords import Subwords, chrf_loss, experience, references, translations
from nestling.reproduce.verses import Pair, Part, pairs, with_gaps

TASK, TASK_CHRF = "translation", "translation-chrf"
FLOOR, ALONE = "shuffled sources", ", B alone"
FIRST, SECOND = "Swahili", "Estonian"

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything.

    Attributes:
        longest: bytes of a side of a pair.
        length: subwords of a row.
        vocabulary: of the subwords.
        rows: pairs of a language that are learned, ``passes`` times.
        english: rows of English before.
        held_out: pairs that are measured.
        batch: rows of a step.
    """

    longest: int = 96
    length: int = 72
    vocabulary: int = 1024
    rows: int = 1700
    passes: int = 4
    english: int = 8000
    held_out: int = 64
    batch: int = 8


SCALES = {
    "smoke": Scale(longest=64, vocabulary=300, rows=32, passes=1, english=32, held_out=4),
    "cpu": Scale(),
    "validation": Scale(),
}

MAIN = {"lr": 3e-3}
SLOWLY = {**MAIN, "period": 24_576, "dreams": 64, "weight": 2.0}
STRATEGIES: dict[str, Settings] = {
    "sequential": MAIN,
    **{name: {**MAIN, "levels": n} for name, n in EXTRA.items()},
    **{name: {**SLOWLY, "levels": n} for name, n in SLOW.items()},
    JOINT: MAIN,
    FLOOR: MAIN,
}
"""Name to what was chosen for it on validation verses."""

TOGETHER = (JOINT, FLOOR)
"""Strategies that have nothing to say about a language alone."""


def jobs(data: Path, *, size: Size, change: Settings | None = None) -> list[Job]:
    """The rows: bits per byte, and chrF of the same runs.

    Args:
        data: folder of the verses.
        size: ``validation`` measures on other verses, with one seed.
        change: settings that are not those chosen.
    """
    found = []
    for seed in SEEDS[size]:
        for strategy, chosen in STRATEGIES.items():
            for alone in (False,) if strategy in TOGETHER else (False, True):
                known = {"task": task_of(TASK, size), "model": "transformer", "seed": seed,
                         "strategy": strategy + (ALONE if alone else ""),
                         "settings": {**chosen, **(change or {})}}  # fmt: skip
                made = partial(_learn, data, size, known)
                bits = Job(**known, unit=BITS, joint=strategy == JOINT, make=partial(_bits, made))
                found.append(bits)
                chrf = partial(_chrf, made, bits.name)
                other = {**known, "task": task_of(TASK_CHRF, size)}
                found.append(Job(**other, unit=CHRF, joint=strategy == JOINT, make=chrf))
    return found


@dataclass(frozen=True)
class Score:
    """Bits per byte of the targets, or ``100 - chrF`` where an experience is marked for it.

    Attributes:
        pieces: the vocabulary.
    """

    pieces: Subwords
    MARK = ", chrF"

    def __call__(self, learner: Predictor, experience: Experience) -> float:
        """The loss of a learner on an experience; it leaves both as they are."""
        items = experience.items
        wanted = references(items, self.pieces)
        if experience.name.endswith(self.MARK):
            most = int((items.targets != IGNORED).sum(1).max())
            written = translations(answering(learner), items, self.pieces, most=most)
            return chrf_loss(written, wanted)
        scores = learner.predict(items.inputs).flatten(0, 1).double()
        nats = F.cross_entropy(
            scores, items.targets.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        # The end of each verse is as good as a byte.
        return float(nats) / math.log(2) / sum(len(text.encode()) + 1 for text in wanted)


def answering(learner: Predictor) -> nn.Module:
    """The model that answers for a learner.

    Raises:
        ValueError: if none is known.
    """
    if isinstance(learner, Chained):
        return learner.answering
    if isinstance(learner, GradientLearner):
        return learner.model
    raise ValueError(f"learner: {type(learner).__name__} does not write text")


def table(groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> str:
    """Both languages alone and after both, by strategy; chrF as the score that it is.

    "Kept" is ``after / alone`` for chrF, ``alone / after`` for bits, and a dash where what was
    learned alone is no better than the floor: then nothing was translated that could be kept.
    """
    lines = [
        f"| strategy | {FIRST} alone | {FIRST} after both | kept | {SECOND} alone "
        f"| {SECOND} after both | kept | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    floor = [_of(groups, FLOOR, 1, 0), _of(groups, FLOOR, -1, 1)]
    higher = next(iter(groups.values()))[0]["unit"] == CHRF
    for (_, strategy), same in groups.items():
        if strategy.endswith(ALONE):
            continue
        alone = [None if same[0]["joint"] else _values(same, 1, 0),
                 _of(groups, strategy + ALONE, -1, 0)]  # fmt: skip
        cells = []
        for column in (0, 1):
            before, after = alone[column], _values(same, -1, column)
            cells += [_spread(before), _spread(after), _kept(before, after, floor[column], higher)]
        seeds = ", ".join(str(row["seed"]) for row in same)
        lines.append(f"| {strategy} | " + " | ".join([*cells, seeds]) + " |")
    return "\n".join(lines)


Values = list[float]


def _of(
    groups: Mapping[tuple[str, str], Any], strategy: str, line: int, column: int
) -> Values | None:
    same = [rows for (_, name), rows in groups.items() if name == strategy]
    return _values(same[0], line, column) if same else None


def _values(rows: Sequence[Mapping[str, Any]], line: int, column: int) -> Values:
    chrf = rows[0]["unit"] == CHRF
    losses = [row["R"][line][column] for row in rows]
    return [100.0 - loss if chrf else loss for loss in losses]


def _spread(values: Values | None) -> str:
    if values is None:
        return ""
    return f"{statistics.fmean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}"


def _kept(alone: Values | None, after: Values, floor: Values | None, higher: bool) -> str:
    if alone is None or floor is None:
        return ""
    learned, left, nothing = map(statistics.fmean, (alone, after, floor))
    if (learned <= nothing) if higher else (learned >= nothing):
        return "-"
    return f"{left / learned if higher else learned / left:.0%}"


SECTIONS = (
    Section(task=TASK, title="Two languages into English, bits per byte", table=table),
    Section(task=TASK_CHRF, title="Two languages into English, chrF", table=table),
)


def _bits(made: Callable[..., Record], folder: Path, on_progress: OnProgress) -> Record:
    # What was learned is counted in subwords, what is measured in bytes: no online average.
    return dataclasses.replace(made(folder, on_progress), probes=(), online=())


def _chrf(made: Callable[..., Record], name: str, folder: Path, on_progress: OnProgress) -> Record:
    """The same run, which is not made again if it is there."""
    record = made(folder.with_name(name), on_progress)
    losses = tuple(probe.losses for probe in record.probes)
    return dataclasses.replace(record, R=losses, unit=CHRF, probes=(), online=())


def _learn(
    data: Path, size: Size, known: Mapping[str, Any], folder: Path, on_progress: OnProgress
) -> Record:
    scale, seed, settings = SCALES[size], known["seed"], known["settings"]
    strategy = known["strategy"].removesuffix(ALONE)
    names = (SECOND,) if known["strategy"].endswith(ALONE) else (FIRST, SECOND)
    pieces = _pieces(data, scale)
    learned, measured, part = [], [], "validation" if size == "validation" else "test"
    for name in names:
        found = _evenly(pairs(data, name, "train", longest=scale.longest), scale.rows)
        if strategy == FLOOR:
            found = [Pair(other.source, pair.target) for other, pair in _shifted(found)]
        learned.append(experience(name, found, pieces, length=scale.length))
        measured.append(_measured(data, name, part, pieces, scale))
    if strategy == JOINT:
        learned = [together(learned)]
    model = _english(data, pieces, scale, seed, folder.parent)
    learner = _learner(strategy, model, settings, seed, scale)
    stream = Stream(learned, batch=scale.batch, passes=scale.passes, seed=seed, boundaries=False)
    marked = [dataclasses.replace(e, name=e.name + Score.MARK) for e in measured]
    return run(
        learner, stream, measured, score=Score(pieces), probes=Probes(every=10**9, on=marked),
        folder=folder, settings=known, on_progress=on_progress,
    )  # fmt: skip


def _learner(
    strategy: str, model: LanguageModel, settings: Settings, seed: int, scale: Scale
) -> Learner:
    make = partial(adamw, lr=settings["lr"])
    if strategy in EXTRA:
        periods = extra_periods(EXTRA[strategy])
        model = with_levels(model, ContinuumConfig(periods=periods, hidden=64))
    if strategy not in SLOW:
        return Sequential(model, make)
    chosen = {name: settings[name] for name in ("period", "dreams", "weight")}
    fastest = Consolidation(surprise=None, length=scale.length, **chosen)
    chain = slower(fastest, settings["levels"], factor=FACTOR)
    return Chained(model, make, vocabulary=model.vocab_size, chain=chain, seed=seed)


def _english(data: Path, pieces: Subwords, scale: Scale, seed: int, work: Path) -> LanguageModel:
    """A model that has learned English and nothing else; learned once for all strategies."""
    found = with_gaps(data, longest=scale.longest)
    torch.manual_seed(seed)
    model = LanguageModel(configure("transformer", vocab_size=pieces.size))
    learned, last = found[: -scale.held_out], found[-scale.held_out :]
    rows = experience("English", _evenly(learned, scale.english), pieces, length=scale.length)
    test = experience("English", last, pieces, length=scale.length, only_target=True)
    run(Sequential(model, partial(adamw, **MAIN)), Stream([rows], batch=scale.batch, seed=seed),
        [test], score=Score(pieces), folder=work / f"english-{seed}-{len(rows.items)}")  # fmt: skip
    return model


def _pieces(data: Path, scale: Scale) -> Subwords:
    """Of the training pairs of both languages, so that neither is at an advantage."""
    texts = []
    for name in (FIRST, SECOND):
        for pair in pairs(data, name, "train", longest=scale.longest):
            texts += [pair.source, pair.target]
    return Subwords(texts, scale.vocabulary)


def _measured(data: Path, name: str, part: Part, pieces: Subwords, scale: Scale) -> Experience:
    found = pairs(data, name, part, longest=scale.longest)
    fitting = experience(name, found, pieces, length=scale.length, only_target=True).items
    rows = torch.tensor(_evenly(range(len(fitting)), scale.held_out))
    return Experience(name, fitting.rows(rows))


def _shifted(found: Sequence[Pair]) -> list[tuple[Pair, Pair]]:
    return list(zip([*found[1:], found[0]], found, strict=True))


def _evenly(found: Sequence[Any], count: int) -> list[Any]:
    """``count`` of them, spread evenly; all, if there are fewer."""
    count = min(count, len(found))
    return [found[place * len(found) // count] for place in range(count)]
