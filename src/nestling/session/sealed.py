"""JSON files that notice every change: the content, and the digest of the content.

    {"sha256": "...", "content": {...}}

The digest finds damage and careless edits. It is not a signature: whoever can write the file can
also seal what he wrote. That is why everything is checked again after the seal, and why nothing in
a session can run.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

LIMIT = 1 << 20
"""Bytes of a sealed file; a header of a model with hundreds of layers has a tenth of it."""


class SessionError(ValueError):
    """A session cannot be read, written or gone on with; the message says why."""


def seal(content: dict[str, Any]) -> bytes:
    """The file that holds ``content``: plain values.

    Raises:
        SessionError: if it would be larger than anything that :func:`unseal` reads.

    >>> unseal(seal({"position": 3}), "here")
    {'position': 3}
    """
    both = {"sha256": digest(content), "content": content}
    data = (json.dumps(both, indent=1, allow_nan=False) + "\n").encode()
    if len(data) > LIMIT:
        raise SessionError(f"header: expected at most {LIMIT:,} bytes, got {len(data):,}")
    return data


def unseal(data: bytes, where: str | Path) -> dict[str, Any]:
    """The content of a sealed file.

    Raises:
        SessionError: naming ``where``, if it is not a sealed file or is not as it was written.
    """
    try:
        both = json.loads(data.decode(), parse_constant=_refuse)
        known = isinstance(both, dict) and both.keys() == {"sha256", "content"}
        content: Any = both["content"] if known else None
        found = digest(content) if isinstance(content, dict) else None
    except (ValueError, RecursionError) as error:
        raise SessionError(f"{where}: truncated or damaged ({len(data)} bytes): {error}") from error
    if found is None:
        raise SessionError(f"{where}: not a file of a nestling session")
    if both["sha256"] != found:
        raise SessionError(f"{where}: damaged: its content has changed since it was written")
    return content


def digest(content: dict[str, Any]) -> str:
    """SHA-256 of the content, however the file is laid out."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_bytes(file: Path, *, limit: int = LIMIT) -> bytes:
    """All of a regular file of at most ``limit`` bytes, and never through a link.

    Raises:
        SessionError: naming the file, if it is missing, larger, or something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(file, flags)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        why = "missing" if missing else f"cannot be read: {error.strerror}"
        raise SessionError(f"{file}: {why}") from error
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise SessionError(f"{file}: expected a file, got something else")
        if found.st_size > limit:
            raise SessionError(f"{file}: expected at most {limit:,} bytes, got {found.st_size:,}")
        with open(handle, "rb", closefd=False) as opened:
            return opened.read(limit)
    except OSError as error:
        raise SessionError(f"{file}: cannot be read: {error.strerror}") from error
    finally:
        os.close(handle)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")
