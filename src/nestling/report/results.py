"""``results.jsonl``: everything a run measured, one JSON object per line, written as it comes.

Three kinds of lines: one ``run`` (what was run, on what, with which budget), some ``component``
(the level table) and many ``measurement``. A file that was cut short by a killed process reads as
far as it got. Nothing else is needed to make the report.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measured number.

    Attributes:
        model: who was measured.
        metric: what was measured; bits per byte where the name ends in ``bpb``.
        value: the number.
        phase: domains learned so far; 0 is before training. During a phase, the phase's number.
        step: optimizer steps of this model so far.
        tokens: training tokens of this model so far.
        domain: the text it was measured on, where that applies.
        part: the memory, level or position, where the metric has several.
        error: standard error of ``value`` over the held-out sequences, where it is a mean of them.
        seconds: time this model had been running.
        seed: of the run.
    """

    model: str
    metric: str
    value: float
    phase: int
    step: int
    tokens: int
    domain: str | None = None
    part: str | None = None
    error: float | None = None
    seconds: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A component of a model as the level table shows it; see ``nestling.levels.Component``."""

    model: str
    number: int
    period: int | None
    name: str
    memory: str
    rule: str
    context_flow: str
    parameters: int


@dataclass(frozen=True)
class Results:
    """A results file in memory.

    Attributes:
        run: the ``run`` line: domains, models, budget, versions, hardware.
        table: the level table's rows, fastest first for each model.
        rows: all measurements, in the order they were made.
        finished: whether the run came to its end.
    """

    run: Mapping[str, Any]
    table: tuple[TableRow, ...] = ()
    rows: tuple[Measurement, ...] = ()
    finished: bool = False

    @property
    def domains(self) -> list[str]:
        """Names of the domains in the order they are learned."""
        return [domain["name"] for domain in self.run["domains"]]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return [model["name"] for model in self.run["models"]]

    def select(self, metric: str, **where: Any) -> list[Measurement]:
        """Measurements of one metric whose fields equal the given values, in order."""
        return [
            row
            for row in self.rows
            if row.metric == metric and all(getattr(row, k) == v for k, v in where.items())
        ]

    def matrix(self, model: str, metric: str = "held_out_bpb") -> list[list[float]]:
        """``R[i][j]``, bits per byte on domain j after i phases; NaN where not yet measured.

        One row per phase and one in front for the model before training.
        """
        names = self.domains
        table = [[math.nan] * len(names) for _ in range(len(names) + 1)]
        for row in self.select(metric, model=model):
            if row.domain in names and 0 <= row.phase <= len(names):
                table[row.phase][names.index(row.domain)] = row.value
        return table

    def phases_done(self) -> int:
        """Phases that every model has finished and been measured after."""
        done = len(self.domains)
        for model in self.models:
            table = self.matrix(model)
            full = [index for index, row in enumerate(table) if not any(map(math.isnan, row))]
            # A phase counts only if all phases before it do.
            reached = next((i for i in range(len(table)) if i not in full), len(table)) - 1
            done = min(done, reached)
        return max(done, 0)


@dataclass
class ResultsWriter:
    """Appends lines to a results file; each is on disk before the call returns.

    An older file of the same name is kept under a numbered name.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with ResultsWriter(folder / "results.jsonl", {"domains": [], "models": []}) as writer:
    ...     writer.add(Measurement(model="m", metric="x", value=1.5, phase=0, step=0, tokens=0))
    >>> read_results(folder / "results.jsonl").rows[0].value
    1.5
    """

    path: Path
    run: Mapping[str, Any]
    results: list[Measurement] = field(default_factory=list)

    def __enter__(self) -> ResultsWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            number = 1
            while (older := self.path.with_suffix(f".{number}.jsonl")).exists():
                number += 1
            self.path.rename(older)
        self._file = self.path.open("x", encoding="utf-8", newline="\n")
        self._line({"kind": "run", "format": FORMAT, **self.run})
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, *rows: Measurement | TableRow) -> None:
        """Append measurements or rows of the level table."""
        for row in rows:
            kind = "measurement" if isinstance(row, Measurement) else "component"
            values = {k: v for k, v in dataclasses.asdict(row).items() if v is not None}
            self._line({"kind": kind, **values})

    def finish(self, seconds: float) -> None:
        """Say that the run came to its end."""
        self._line({"kind": "end", "seconds": round(seconds, 1)})

    def _line(self, values: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise ValueError(f"results: cannot write {dict(values)}: {error}") from error
        self._file.write(text + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def _measurement(values: dict[str, Any]) -> Measurement:
    """JSON does not tell 2 from 2.0."""
    numbers = {k: float(values[k]) for k in ("value", "error", "seconds") if k in values}
    return Measurement(**{**values, **numbers})


def read_results(path: Path) -> Results:
    """Read a results file, also one whose writer was killed.

    Raises:
        ValueError: naming the file and line, if it is missing, is not a results file, or is
            damaged anywhere but in its last, unfinished line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ValueError(f"results: cannot read {path}: {error.strerror or error}") from error
    run: dict[str, Any] | None = None
    table: list[TableRow] = []
    rows: list[Measurement] = []
    finished = False
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            values = json.loads(line)
            kind = values.pop("kind")
            if kind == "run":
                run = values
            elif kind == "component":
                table.append(TableRow(**{"period": None, **values}))
            elif kind == "measurement":
                rows.append(_measurement(values))
            elif kind == "end":
                finished = True
                run = {**(run or {}), "seconds": values["seconds"]}
            else:
                raise ValueError(f"unknown kind {kind!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):  # no line end behind it: the writer was killed here
                break
            raise ValueError(f"results: {path}, line {number} is damaged: {error}") from error
    if run is None or run.get("format") != FORMAT or not {"domains", "models"} <= run.keys():
        raise ValueError(
            f"results: {path} is not a results file of format {FORMAT}: it does not begin with "
            "a line of kind 'run'"
        )
    return Results(run=run, table=tuple(table), rows=tuple(rows), finished=finished)
