"""One process per directory: a lock that the system drops with the process that holds it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_NAME = ".lock"


@contextmanager
def lock(directory: Path, *, what: str = "run") -> Iterator[None]:
    """Hold ``directory`` for this process; the file itself stays.

    The lock belongs to the open file and not to its existence, so a process that was killed
    leaves nothing that would have to be cleaned up.

    Args:
        directory: it must exist.
        what: is in it, for the message.

    Raises:
        ValueError: if another process holds it, naming the process.
    """
    # Not through a link: the file is overwritten, and it must be the one in this directory.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(directory / LOCK_NAME, flags, 0o644)
    try:
        if not _try_lock(handle):
            holder = os.pread(handle, 200, 0).decode("utf-8", errors="replace").strip()
            raise ValueError(
                f"{directory}: another process is writing this {what} ({holder or 'unknown'}); "
                "wait for it, stop it, or choose another directory"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    import fcntl  # POSIX only; imported here so that reading checkpoints works everywhere

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
