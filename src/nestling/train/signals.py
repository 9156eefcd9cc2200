"""Requests to stop, taken note of so that what is going on can be finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(*, active: bool = True) -> Iterator[list[str]]:
    """Collect the names of signals that ask to stop; a second one acts at once.

    SIGTERM, SIGINT and SIGHUP; nothing is caught where ``active`` is False, or outside of the main
    thread, which alone receives signals.
    """
    received: list[str] = []
    previous: dict[int, Any] = {}
    if active and threading.current_thread() is threading.main_thread():

        def note(number: int, frame: Any) -> None:
            received.append(signal.Signals(number).name)
            for other, handler in previous.items():
                signal.signal(other, handler)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # A signal that the caller ignores (nohup, a background job) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
