"""Files of one JSON object a line, only ever appended to: a line is complete or absent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def append_line(row: Mapping[str, Any], file: Path) -> Path:
    """Add a row to a file, which is made if there is none.

    Raises:
        ValueError: for a number that is not finite.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(row, allow_nan=False) + "\n").encode()
    # One write in append mode: two processes with one file never mix their lines.
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data  # a line that a kill cut off stays alone
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    return file


def read_lines(files: Path | Iterable[Path], check: Callable[[Any], None]) -> list[dict[str, Any]]:
    """All rows of a file, of files, or of every ``.jsonl`` of a folder.

    A last line that was cut off by a kill is left out.

    Args:
        files: where.
        check: raises ``ValueError`` for what is no row.

    Raises:
        ValueError: naming file and line of anything else that is not such a row.
    """
    if isinstance(files, Path):
        files = sorted(files.glob("*.jsonl")) if files.is_dir() else [files]
    found = []
    for file in files:
        if not file.exists():
            continue
        lines = file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                check(row)
            except ValueError as error:
                if isinstance(error, json.JSONDecodeError) and _cut_off(line, number, len(lines)):
                    continue
                raise ValueError(f"{file}:{number}: {error}") from error
            found.append(row)
    return found


def plain(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists.

    >>> plain({"periods": (1, 10)})
    {'periods': [1, 10]}
    """
    return json.loads(json.dumps(value))


def _cut_off(line: str, number: int, lines: int) -> bool:
    return number == lines or not line.endswith("}")
