"""Files and directories that are there whole or not at all, also after a kill or a power cut.

    write under a hidden name  ->  flush to the disk  ->  rename  ->  flush the directory

The rename is the moment at which the new content exists; before it the old one is untouched.
What a kill leaves behind has a hidden name, which :func:`sweep` removes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_SAVING, _REMOVING = ".saving-", ".removing-"
_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Fill a directory under a hidden name; on leaving, it appears under its own.

    The files in it must be flushed by whoever writes them (:func:`seal`). An error, also an
    interruption, removes what was written.
    """
    hidden = folder.with_name(f"{_SAVING}{folder.name}-{os.getpid()}")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        yield hidden
        sync(hidden)
        os.rename(hidden, folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def replace(file: Path, data: bytes) -> None:
    """Give a file new content, or its first: readers see the old one or the new one, whole."""
    hidden = file.with_name(f"{_SAVING}{file.name}")
    hidden.unlink(missing_ok=True)
    hidden.write_bytes(data)
    seal(hidden)
    os.replace(hidden, file)
    sync(file.parent)


def seal(file: Path) -> dict[str, Any]:
    """Flush a file to the disk and say what it holds: ``{"bytes": ..., "sha256": ...}``."""
    # safetensors writes files that only their owner may read; the umask has decided otherwise.
    file.chmod(file.parent.stat().st_mode & 0o666)
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        return {"bytes": handle.tell(), "sha256": digest}


def sync(folder: Path) -> None:
    """Flush a directory: which names are in it, not what the files hold."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(folder: Path) -> None:
    """Remove a directory so that a kill half-way never leaves half of it under its name."""
    hidden = folder.with_name(f"{_REMOVING}{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    os.rename(folder, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def sweep(root: Path) -> None:
    """Remove what killed processes left behind. Call it while holding the directory's lock."""
    for entry in root.iterdir():
        if entry.name.startswith((_SAVING, _REMOVING)):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def cause(error: Exception) -> str:
    """Why the system refused, in words.

    >>> cause(OSError(errno.ENOSPC, "No space left on device"))
    'the disk is full'
    """
    code = getattr(error, "errno", None)
    found = re.search(r"os error (\d+)", str(error))  # how safetensors reports them
    if code is None and found:
        code = int(found.group(1))
    return _FULL.get(code or 0) or (os.strerror(code) if code else str(error))
