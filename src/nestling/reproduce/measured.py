"""Measurements that are no streams: one row each, made once, shown on a page.

    measurements(data, size, rows)  ->  those that are not there  ->  ROWS/{file}.jsonl  ->  page

What is measured may depend on what was: a step size that is chosen on a grid is a row of its own.
So the list is asked for again until nothing is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling import __version__
from nestling.report.machine import commit, hardware
from nestling.reproduce.job import Size
from nestling.reproduce.lines import append_line, plain, read_lines
from nestling.reproduce.page import BEGIN, END, insert

Row = Mapping[str, Any]
Say = Callable[[str], None]
KEYS: dict[str, type | tuple[type, ...]] = {
    "task": str, "key": dict, "result": dict, "seconds": (int, float), "commit": str,
    "hardware": str,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One row that is to be made.

    Attributes:
        task: what is measured: the name of its place in the page.
        key: what the row is known by, plain values.
        make: measures; gets a function that tells how far it is, and gives plain values.
    """

    task: str
    key: Mapping[str, Any]
    make: Callable[[Say], Mapping[str, Any]]

    @property
    def title(self) -> str:
        """For people."""
        return ", ".join([self.task, *(f"{name} {value}" for name, value in self.key.items())])


@dataclass(frozen=True, kw_only=True)
class Place:
    """A section of the page.

    Attributes:
        task: of its rows.
        title: of the section.
        table: of the rows.
        draw: pictures of the rows, into a folder; gives their files.
    """

    task: str
    title: str
    table: Callable[[Sequence[Row]], str]
    draw: Callable[[Sequence[Row], Path], list[Path]] = lambda rows, folder: []


Measurements = Callable[[Path, Size, Sequence[Row]], Sequence[Measurement]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Something to reproduce that is made of measurements.

    Attributes:
        title: in a few words.
        measurements: of a size, from the folder of the data and the rows so far.
        places: in the page.
        page: where they are.
        file: name of the rows' file.
    """

    title: str
    measurements: Measurements
    places: tuple[Place, ...]
    page: str
    file: str


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where everything is, and what of it is asked for.

    Attributes:
        data: folder of the data sets.
        rows: file of the rows.
        page: to rewrite; ``None``: none.
        size: of the measurements.
        wanted: whether a measurement is asked for.
    """

    data: Path
    rows: Path
    page: Path | None
    size: Size
    wanted: Callable[[Measurement], bool] = lambda measurement: True


def measure(target: Measured, where: Where, say: Say) -> None:
    """Make the rows that are missing, and rewrite the page."""
    while True:
        rows = read(where.rows)
        there = {known(row["task"], row["key"]) for row in rows}
        every = target.measurements(where.data, where.size, rows)
        missing = [
            one for one in every if known(one.task, one.key) not in there and where.wanted(one)
        ]
        if not missing:
            break
        say(f"{target.title}: {len(missing)} rows to make")
        began = time.monotonic()
        for number, one in enumerate(missing):
            _make(one, where.rows, say)
            left = (time.monotonic() - began) / (number + 1) * (len(missing) - number - 1)
            say(f"{number + 1} of {len(missing)}, about {left:.0f} s left")
    if where.page is not None:
        for file in rewrite(where.page, read(where.rows), target.places):
            say(f"wrote {file}")


def _make(one: Measurement, file: Path, say: Say) -> None:
    began = time.perf_counter()
    result = one.make(lambda text: say(f"{one.title}: {text}"))
    row = {
        "task": one.task,
        "key": dict(one.key),
        "result": dict(result),
        "seconds": round(time.perf_counter() - began, 2),
        "commit": commit() or f"nestling {__version__}",
        "hardware": hardware(),
    }
    check(row)
    append_line(row, file)
    numbers = ", ".join(
        f"{name} {value:.4g}" for name, value in result.items() if isinstance(value, float)
    )
    say(f"{one.title}: {numbers}")


def rewrite(page: Path, rows: Sequence[Row], places: Sequence[Place]) -> list[Path]:
    """Put the newest tables between the marks of a page, and pictures beside it.

    Returns:
        The files that were written.
    """
    text = page.read_text(encoding="utf8") if page.exists() else ""
    page.parent.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for place in places:
        own = [row for row in rows if row["task"] == place.task]
        if not own:
            continue
        begin, end = BEGIN.format(task=place.task), END.format(task=place.task)
        if begin not in text:
            text = f"{text.rstrip()}\n\n## {place.title}\n\n{begin}\n{end}\n"
        text = insert(text, place.task, place.table(own))
        made += place.draw(own, page.parent)
    page.write_text(text, encoding="utf8")
    return [*made, page]


def read(file: Path) -> list[dict[str, Any]]:
    """All rows of a file; none if it is not there.

    Raises:
        ValueError: naming file and line of what is no row.
    """
    return read_lines(file, check)


def known(task: str, key: Mapping[str, Any]) -> str:
    """What a row is known by, as text.

    >>> known("t", {"b": 1, "a": (2, 3)}) == known("t", {"a": [2, 3], "b": 1})
    True
    """
    return f"{task} {sorted(plain(dict(key)).items())}"


def check(row: Any) -> None:
    """Make sure that a row is one.

    Raises:
        ValueError: naming the key.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"row: expected an object, got {type(row).__name__}")
    for key, kind in KEYS.items():
        if not isinstance(row.get(key), kind):
            raise ValueError(f"row: {key!r} is missing, or a {type(row.get(key)).__name__}")
