"""metrics.jsonl: one row per measurement, written as it comes, cut back where a run resumes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


class MetricsFile:
    """Appends rows to ``metrics.jsonl`` of a run directory; without one it writes nothing.

    Rows of steps after ``since`` are dropped first: a killed run got further than its checkpoint,
    and those steps are about to be taken again.

    Raises:
        ValueError: if the file cannot be written, saying why.
    """

    def __init__(self, directory: Path | None, *, since: int = 0) -> None:
        self.path = None if directory is None else directory / METRICS
        self._handle = None
        if self.path is None:
            return
        try:
            rows = read_metrics(self.path) if since and self.path.exists() else []
            new = self.path.with_name(f".saving-{METRICS}")
            with new.open("w", encoding="utf-8") as handle:
                handle.writelines(json.dumps(row) + "\n" for row in rows if row["step"] <= since)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(new, self.path)
            self._handle = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._why(error) from error

    def write(self, kind: str, **row: Any) -> None:
        """Append ``{"kind": kind, ...}``; it is in the file when this returns."""
        if self._handle is None:
            return
        try:
            self._handle.write(json.dumps({"kind": kind, **row}) + "\n")
            self._handle.flush()
        except OSError as error:
            raise self._why(error) from error

    def sync(self) -> None:
        """Make sure that the rows are on the disk: called before every checkpoint."""
        if self._handle is None:
            return
        try:
            os.fsync(self._handle.fileno())
        except OSError as error:
            raise self._why(error) from error

    def close(self) -> None:
        """Nothing more will come."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            try:
                handle.close()
            except OSError as error:
                raise self._why(error) from error

    def _why(self, error: OSError) -> ValueError:
        return ValueError(f"{self.path}: cannot be written: {error.strerror}")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last row cut short by a kill is left out.

    Raises:
        ValueError: naming the line, if another row is broken.
    """
    rows = []
    with Path(path).open(encoding="utf-8", errors="replace") as handle:
        for number, text in enumerate(handle, start=1):
            if not text.endswith("\n"):
                break
            try:
                row = json.loads(text)
                row["step"] = int(row["step"])
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a row of metrics") from error
            rows.append(row)
    return rows
