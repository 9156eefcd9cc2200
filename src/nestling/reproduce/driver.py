"""Make the rows that are missing, then the page from all rows.

    jobs  ->  rows that are not there yet  ->  tables and pictures between the marks of the page

A row that is there is not made again; one that was stopped half-way goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from nestling.continual.run import Progress
from nestling.reproduce import (
    domains,
    images,
    intents,
    languages,
    optimizers,
    page,
    returns,
    translation,
)
from nestling.reproduce.job import Job, Section, Size, task_of
from nestling.reproduce.measured import Measured, Measurement, Where, measure
from nestling.reproduce.rows import append, done, read, row_of

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something to reproduce.

    Attributes:
        title: in a few words.
        jobs: all rows of a size, from the folder of the data.
        sections: places in the page.
        page: where they are.
    """

    title: str
    jobs: Callable[[Path, Size], Sequence[Job]]
    sections: tuple[Section, ...]
    page: str = "docs/continual.md"


def _of(*modules: Any) -> dict[str, Any]:
    """What the modules of a target have together."""

    def jobs(data: Path, size: Size) -> list[Job]:
        return [job for module in modules for job in module.jobs(data, size=size)]

    return {"jobs": jobs, "sections": tuple(s for module in modules for s in module.SECTIONS)}


TARGETS: dict[str, Target | Measured] = {
    "streams": Target(
        title="streams of texts and of images, and what of them comes back",
        **_of(domains, returns, images),
    ),
    "fig6": Target(
        title="classes of intents in groups, on a pre-trained encoder (NL Fig. 6)",
        **_of(intents),
    ),
    "fig8": Target(
        title="languages one after the other, and their translation (NL Fig. 8)",
        **_of(languages, translation),
    ),
    **optimizers.TARGETS,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to reproduce, and where everything is.

    Attributes:
        target: a name in ``TARGETS``.
        data: folder of the data sets.
        size: ``smoke``, ``cpu`` or ``validation``.
        rows: folder of the rows.
        page: to rewrite; ``None``: none.
        work: folder of unfinished runs.
        tasks, models, strategies, seeds: only these; empty: all.
    """

    target: str
    data: Path
    rows: Path
    work: Path
    page: Path | None = None
    size: str = "cpu"
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    strategies: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def reproduce(request: Request, say: Say) -> None:
    """Make what is missing, tell how far it is, and rewrite the page.

    Raises:
        ValueError: naming an argument that cannot be used.
    """
    target = _target(request)
    if isinstance(target, Measured):
        _measure(request, target, say)
        return
    missing = _missing(request, target)
    say(f"{target.title}: {len(missing)} rows to make")
    for number, job in enumerate(missing, start=1):
        title = f"{number} of {len(missing)}: {job.model}, {job.strategy}, seed {job.seed}"
        record = job.make(request.work / job.name, _telling(title, say))
        row = row_of(record, **job.key, unit=job.unit, joint=job.joint)
        file = append(row, request.rows / f"{job.task}.jsonl")
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in record.metrics().items())
        say(f"{title}: {numbers} -> {file}")
    if request.page is not None:
        suffix = task_of("", cast(Size, request.size))
        for file in page.rewrite(request.page, request.rows, target.sections, suffix=suffix):
            say(f"wrote {file}")


def _measure(request: Request, target: Measured, say: Say) -> None:
    size = cast(Size, request.size)
    asked = {"model": request.models, "optimizer": request.strategies, "seed": request.seeds}

    def wanted(one: Measurement) -> bool:
        here = all(not some or one.key.get(name) in some for name, some in asked.items())
        return here and (not request.tasks or one.task in request.tasks)

    where = Where(
        data=request.data,
        rows=request.rows / f"{task_of(target.file, size)}.jsonl",
        page=request.page,
        size=size,
        wanted=wanted,
    )
    measure(target, where, say)


def _target(request: Request) -> Target | Measured:
    if request.target not in TARGETS:
        raise ValueError(f"target: expected one of {list(TARGETS)}, got {request.target!r}")
    if request.size not in get_args(Size):
        raise ValueError(f"--size: expected one of {list(get_args(Size))}, got {request.size!r}")
    if not request.data.is_dir():
        raise ValueError(f"--data: {request.data} is no folder")
    return TARGETS[request.target]


def _missing(request: Request, target: Target) -> list[Job]:
    """Jobs that were asked for and have no row yet."""
    jobs = list(target.jobs(request.data, cast(Size, request.size)))
    for option in ("task", "model", "strategy", "seed"):
        name = "strategies" if option == "strategy" else f"{option}s"
        wanted, there = getattr(request, name), {getattr(job, option) for job in jobs}
        unknown = [value for value in wanted if value not in there]
        if unknown:
            raise ValueError(f"--{name}: expected some of {sorted(there)}, got {unknown[0]!r}")
        jobs = [job for job in jobs if not wanted or getattr(job, option) in wanted]
    rows = read(request.rows) if request.rows.exists() else []
    return [job for job in jobs if not done(rows, **job.key)]


def _telling(title: str, say: Say) -> Callable[[Progress], None]:
    """Say now and then how far it is, and how long it will still take."""
    began, said = time.monotonic(), [0.0]

    def tell(now: Progress) -> None:
        passed = time.monotonic() - began
        if passed - said[0] > 20 and now.batches:
            said[0] = passed
            left = passed / now.batches * (now.total - now.batches)
            say(f"{title}: {now.batches} of {now.total} batches, {left:.0f} s left")

    return tell
