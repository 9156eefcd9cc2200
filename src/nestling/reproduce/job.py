"""A job makes one row: one strategy on one stream, once.

jobs(data, size)  ->  [Job]  ->  make(folder)  ->  Record  ->  a line of ROWS/{task}.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nestling.continual.record import Record
from nestling.continual.run import Progress

Size = Literal["smoke", "cpu", "validation"]
"""A minute to see that everything runs; the real thing; the stream that settings are chosen on."""


def task_of(task: str, size: Size) -> str:
    """The task's name at a size: rows of different sizes never stand in one file.

    >>> task_of("domains", "cpu"), task_of("domains", "smoke")
    ('domains', 'domains-smoke')
    """
    return task if size == "cpu" else f"{task}-{size}"


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row that is to be made.

    Attributes:
        task: what is learned: the name of the rows' file and of the place in the page.
        model, strategy, seed, settings: what the row is known by, together with ``task``.
        unit: of the losses, one of :data:`nestling.reproduce.rows.UNITS`.
        joint: everything is learned as one experience.
        make: runs it; gets a folder for its checkpoints, from which a run that was stopped goes on.
    """

    task: str
    model: str
    strategy: str
    seed: int
    unit: str
    make: Callable[[Path, OnProgress], Record]
    settings: Mapping[str, Any] = field(default_factory=dict)
    joint: bool = False

    @property
    def key(self) -> dict[str, Any]:
        """What the row is known by."""
        return {"task": self.task, "strategy": self.strategy, "model": self.model,
                "seed": self.seed, "settings": dict(self.settings)}  # fmt: skip

    @property
    def name(self) -> str:
        """The same as the name of a folder."""
        words = [self.task, self.model, self.strategy, str(self.seed)]
        words += [f"{name}{value}" for name, value in self.settings.items()]
        return "-".join("".join(c if c.isalnum() or c in ".+" else "_" for c in w) for w in words)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A place in the page: the rows of one task, and which strategies its pictures show.

    Attributes:
        task: of the rows.
        title: of the section.
        plain: the strategy that does nothing about forgetting.
        ours: the one to hold against it.
        table: of the rows by model and strategy; ``None``: the usual one, with pictures.
    """

    task: str
    title: str
    plain: str = "sequential"
    ours: str = "consolidated"
    table: Callable[[Mapping[tuple[str, str], Any]], str] | None = None
