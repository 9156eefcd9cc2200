"""What a model that has learned all domains makes of each of them when it returns.

    frozen       bits per byte on long passages, nothing is written while they are read
    written      the same with every inner memory on, from a fresh state at each passage
    read N       and before each passage the state has read N bytes of the domain; weights held
    learned N    the strategy has learned N bytes of the domain first; then as "written"

The passages are of the domain's held-out part, and what is read or learned again is of its training
part. The learners are those of the domain stream, from where they stood at its end.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nestling.continual.protocol import Batch, Cost, Experience, Learner, Predictor
from nestling.continual.record import Record
from nestling.continual.scoring import bits_per_target
from nestling.continual.strategies import Consolidated, ContextReader, GradientLearner
from nestling.models import LanguageModel
from nestling.reproduce import domains
from nestling.reproduce.domain_texts import domains as read_domains
from nestling.reproduce.domains import BATCH, LENGTH
from nestling.reproduce.job import Job, OnProgress, Section, Size, task_of

TASK = "returns"
PASSAGE = {"smoke": 16, "cpu": 1024, "validation": 1024}
PASSAGES = {"smoke": 2, "cpu": 8, "validation": 8}
AGAIN = {"smoke": (16,), "cpu": (2_048, 16_384), "validation": (2_048, 16_384)}
STRATEGIES = ("sequential", "consolidated")

Row = dict[str, Any]


def jobs(data: Path, *, size: Size, names: Sequence[str] = ()) -> list[Job]:
    """One row for each run of the domain stream by the strategies of ``STRATEGIES``."""
    found = []
    for job in domains.jobs(data, size=size, names=names):
        if job.strategy in STRATEGIES:
            key = {**job.key, "task": task_of(TASK, size)}
            make = partial(_measure, data, size, tuple(names), job)
            found.append(Job(**key, unit=job.unit, joint=True, make=make))
    return found


def _measure(
    data: Path, size: Size, names: tuple[str, ...], job: Job, folder: Path, on_progress: OnProgress
) -> Record:
    # Where the domain stream left its run: what is finished there is not learned again.
    learner, record = domains.learned(
        data, size, names, job.key, folder.parent / job.name, on_progress
    )
    again, length = AGAIN[size], PASSAGE[size]
    rows = max(again) // LENGTH + BATCH
    short = read_domains(data, _stream(size), rows=rows, held_out=1, length=LENGTH, names=names)
    long = read_domains(data, _stream(size), rows=1, held_out=PASSAGES[size], length=length,
                        names=names)  # fmt: skip
    columns = [
        _column(learner, passages, text.items, again)
        for passages, text in zip(long.test, short.train, strict=True)
    ]
    return Record(
        names=record.names,
        phases=tuple(columns[0]),
        R=tuple(zip(*(column.values() for column in columns), strict=True)),
        seen=(record.seen[-1],),
        unit=record.unit,
        costs=(Cost(),),
        finished=True,
    )


def _stream(size: Size) -> str:
    return "validation" if size == "validation" else "test"


def _column(
    learner: Learner, passages: Experience, text: Batch, again: Sequence[int]
) -> dict[str, float]:
    """Everything about one domain, by the names of the rows."""
    model = answering(learner)
    found = {
        "frozen": bits_per_target(ContextReader(model, writes="off"), passages),
        "written": bits_per_target(learner, passages),
    }
    for count in again:
        reader = ContextReader(model)
        reader.observe(text.rows(slice(0, -(-count // LENGTH))))
        found[f"read {count:,}"] = bits_per_target(reader, passages)
    for count in again:
        found[f"learned {count:,}"] = bits_per_target(_learned(learner, text, count), passages)
    return found


def answering(learner: Learner) -> LanguageModel:
    """The model whose scores a learner gives.

    Raises:
        ValueError: if it is no language model of this library.
    """
    model = learner.slow.weights if isinstance(learner, Consolidated) else None
    if isinstance(learner, GradientLearner) and model is None:
        model = learner.model
    if not isinstance(model, LanguageModel):
        raise ValueError(f"learner: expected one with a language model, got {type(model).__name__}")
    return model


def _learned(learner: Learner, text: Batch, count: int) -> Predictor:
    """A copy of a learner that has learned ``count`` tokens more."""
    more = copy.deepcopy(learner)
    for start in range(0, max(count // LENGTH, 1), BATCH):
        more.observe(text.rows(slice(start, start + BATCH)))
    return more


def table(groups: Mapping[tuple[str, str], Sequence[Row]]) -> str:
    """Mean over domains and seeds, one column for each of the names above."""
    phases = next(iter(groups.values()))[0]["phases"]
    lines = ["| model | strategy | " + " | ".join([*phases, "seeds"]) + " |",
             "|---|---|" + "---|" * (len(phases) + 1)]  # fmt: skip
    for (model, strategy), same in groups.items():
        cells = []
        for place in range(len(phases)):
            values = [value for row in same for value in row["R"][place]]
            cells.append(f"{sum(values) / len(values):.3f}")
        seeds = ", ".join(str(row["seed"]) for row in same)
        lines.append(f"| {model} | {strategy} | " + " | ".join([*cells, seeds]) + " |")
    return "\n".join(lines)


SECTIONS = (
    Section(task=TASK, title="What inner memories add, and what comes back quickly", table=table),
)
