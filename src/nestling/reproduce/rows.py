"""One line for each run over a stream: what a reproduction writes, skips and reads.

    ROWS/{task}.jsonl         one JSON object a line, only ever appended to

A row is complete or absent, so what was stopped asks :func:`done` what it may skip.

Keys: ``task``, ``strategy``, ``model``, ``seed``, ``settings`` (plain values), ``names`` (columns
of R), ``phases`` (rows of R but one before learning), ``R``,
``unit`` (of R and ``online``), ``online`` (prequential average, or null), ``cost``
(``stored_bytes``, ``forward``, ``backward``), ``new`` (targets that were learned from), ``seconds``
(spent learning), ``commit``, ``hardware``, ``joint``; and where there is one, ``curve``: ``seen``
(targets), ``losses`` (one list a point), ``ends`` (targets seen at each row of R).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nestling import __version__
from nestling.continual.record import Record
from nestling.report.machine import commit, hardware
from nestling.reproduce.lines import append_line, plain, read_lines

BITS, ERRORS, CHRF = "bits per byte", "error rate", "100 - chrF"
UNITS = (BITS, ERRORS, CHRF)
KINDS: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "strategy": str,
    "model": str,
    "seed": int,
    "settings": dict,
    "names": list,
    "phases": list,
    "R": list,
    "unit": str,
    "online": (int, float, type(None)),
    "cost": dict,
    "new": int,
    "seconds": (int, float),
    "commit": str,
    "hardware": str,
    "joint": bool,
}


def row_of(
    record: Record,
    *,
    task: str,
    strategy: str,
    model: str,
    seed: int,
    settings: Mapping[str, Any],
    unit: str = ERRORS,
    joint: bool = False,
) -> dict[str, Any]:
    """The row of a finished run.

    Args:
        record: of :func:`nestling.continual.run.run`.
        task: what was learned; also the name of the file.
        strategy, model, seed, settings: what the run is known by.
        unit: one of ``UNITS``. The online average of losses in nats is given in bits; where the
            online curve has another unit than R, it is left out.
        joint: all experiences were learned as one.

    Raises:
        ValueError: if the run is not finished, or the unit is none.

    >>> record = Record(names=("a",), phases=("a",), R=((8.0,), (2.0,)), seen=(0, 4),
    ...                 online=((math.log(2), 4),), online_unit="nats", finished=True)
    >>> row = row_of(record, task="t", strategy="s", model="m", seed=0, settings={}, unit=BITS)
    >>> row["R"], row["online"]
    ([[8.0], [2.0]], 1.0)
    """
    if not record.finished:
        raise ValueError("record: expected one of a finished run")
    if unit not in UNITS:
        raise ValueError(f"unit: expected one of {list(UNITS)}, got {unit!r}")
    average = record.metrics().get("online_average")
    factor = {(BITS, "nats"): 1 / math.log(2), (BITS, "bits"): 1.0}.get((unit, record.online_unit))
    if record.online_unit == unit:
        factor = 1.0
    cost = record.costs[-1] if record.costs else None
    found: dict[str, Any] = {
        "task": task,
        "strategy": strategy,
        "model": model,
        "seed": seed,
        "settings": dict(settings),
        "names": list(record.names),
        "phases": list(record.phases),
        "R": [list(row) for row in record.R],
        "unit": unit,
        "online": None if average is None or factor is None else average * factor,
        "cost": {name: getattr(cost, name, 0) for name in ("stored_bytes", "forward", "backward")},
        "new": record.seen[-1],
        "seconds": round(record.seconds, 2),
        "commit": commit() or f"nestling {__version__}",
        "hardware": hardware(),
        "joint": joint,
    }
    if len(record.probes) > len(record.R):
        found["curve"] = {
            "seen": [probe.seen for probe in record.probes],
            "losses": [list(probe.losses) for probe in record.probes],
            "ends": list(record.seen),
        }
    return found


def append(row: Mapping[str, Any], file: Path) -> Path:
    """Add a row to a file.

    Raises:
        ValueError: naming what is missing or of the wrong kind, or a number that is not finite.
    """
    check(row)
    return append_line(row, file)


def read(files: Path | Iterable[Path]) -> list[dict[str, Any]]:
    """All rows of a file, of files, or of every ``.jsonl`` of a folder.

    A last line that was cut off by a kill is left out.

    Raises:
        ValueError: naming file and line of anything else that is not such a row.
    """
    return read_lines(files, check)


def done(
    rows: Sequence[Mapping[str, Any]],
    *,
    task: str,
    strategy: str,
    model: str,
    seed: int,
    settings: Mapping[str, Any],
) -> bool:
    """Whether the rows hold this run already.

    >>> done([], task="t", strategy="s", model="m", seed=0, settings={"lr": 0.1})
    False
    """
    wanted = [task, strategy, model, seed, plain(settings)]
    keys = ("task", "strategy", "model", "seed")
    return any([*(row[key] for key in keys), plain(row["settings"])] == wanted for row in rows)


def check(row: Any) -> None:
    """Make sure that a row is one.

    Raises:
        ValueError: naming the key.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"row: expected an object, got {type(row).__name__}")
    for key, kind in KINDS.items():
        if key not in row:
            raise ValueError(f"row: no {key!r}")
        if not isinstance(row[key], kind):
            raise ValueError(f"row: {key!r} is a {type(row[key]).__name__}")
    columns, lines, phases = len(row["names"]), len(row["R"]), len(row["phases"])
    if any(len(line) != columns for line in row["R"]):
        raise ValueError(f"row: 'R' has not {columns} columns, as 'names' has")
    if lines not in (phases, phases + 1):
        raise ValueError(f"row: 'R' has {lines} rows for {phases} phases")
    if not row["joint"] and phases != columns:
        raise ValueError(f"row: {phases} phases and {columns} experiences that are measured")
    if not all(math.isfinite(value) for line in row["R"] for value in line):
        raise ValueError("row: 'R' holds a number that is not finite")
    missing = {"stored_bytes", "forward", "backward"} - set(row["cost"])
    if missing:
        raise ValueError(f"row: 'cost' has no {min(missing)!r}")
