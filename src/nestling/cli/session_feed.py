"""``nestling session feed`` and ``generate``: a session that reads and writes in the terminal."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from nestling.cli.device import choose_device
from nestling.cli.generation import write_now
from nestling.cli.opened import open_session
from nestling.data import Tokenizer
from nestling.models.sampling import PIECE
from nestling.session import Session
from nestling.session.text import blocks
from nestling.shapes import Tensor
from nestling.train.progress import clock
from nestling.train.signals import stop_signals

QUIET = 10.0
"""Seconds between two lines where the output is not a terminal."""


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """What is fed and how; see the options of ``nestling session feed``."""

    file: Path
    checkpoint: Path | None
    skip: int
    save_every: int | None
    piece: int | None
    keep: int | None
    device: str


@dataclass(frozen=True, kw_only=True)
class Writing:
    """What is asked for; see the options of ``nestling session generate``."""

    prompt: str | None
    size: int
    temperature: float
    top_k: int | None
    seed: int
    save: bool
    checkpoint: Path | None
    device: str


def feed_file(directory: Path, request: Feeding) -> None:
    """Feed a file or standard input and save.

    Raises:
        ValueError: if the session, its model or the text cannot be used.
    """
    name = "stdin" if str(request.file) == "-" else str(request.file)
    with (
        _opened(request.file) as (opened, size),
        open_session(
            directory,
            checkpoint=request.checkpoint,
            keep=request.keep,
            device=choose_device(request.device),
        ) as session,
        stop_signals() as received,
        _Shown(name, size) as shown,
    ):
        whole = _Encoded(opened, name, session.tokenizer, skip=request.skip)
        saved = 0

        def after_piece(read: int) -> None:
            nonlocal saved
            shown.update(read, whole.bytes_of(read))
            if received:
                raise KeyboardInterrupt
            if request.save_every is not None and read - saved >= request.save_every:
                session.save(f"{name}: {read:,} tokens so far")
                saved = read

        start = session.position
        try:
            read = session.feed(whole, piece=request.piece or PIECE, on_piece=after_piece)
        except KeyboardInterrupt:
            # Session.feed has saved, unless a second signal interrupted that.
            if session.saves()[-1].position != session.position:
                raise
            read = session.position - start
            told = received[0] if received else "SIGINT"
            shown.say(f"{told}: saved and stopped at position {session.position:,}")
            if size is not None:
                again = f"{directory} {name} --skip {request.skip + read}"
                shown.say(f"to go on: nestling session feed {again}")
            raise typer.Exit(130 if told == "SIGINT" else 0) from None
        number = session.save(f"{name}: {read:,} tokens").number
        seconds = shown.seconds()
        shown.say(
            f"{read:,} tokens ({session.tokenizer.name}) in {clock(seconds)}, "
            f"{read / max(seconds, 1e-9):,.0f} tokens/s; "
            f"position {session.position:,}, save {number}"
        )


def generate_text(directory: Path, request: Writing) -> None:
    """Print the prompt and what the session writes after it.

    Raises:
        ValueError: if the session, its model or an option cannot be used.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model may write any character; a terminal that cannot show it should not end this.
        sys.stdout.reconfigure(errors="replace")
    with open_session(
        directory, checkpoint=request.checkpoint, device=choose_device(request.device)
    ) as session:
        start = session.position
        try:
            if request.prompt:
                session.feed(request.prompt)
                write_now(request.prompt)
            session.generate(
                request.size,
                temperature=request.temperature,
                top_k=request.top_k,
                seed=request.seed,
                on_text=write_now,
            )
        except KeyboardInterrupt:
            # What came before it was read and written.
            _remember(session, start, save=request.save)
            raise
        _remember(session, start, save=request.save)


def _remember(session: Session, start: int, *, save: bool) -> None:
    write_now("\n")
    if save and session.position > start:
        session.save(f"read and wrote {session.position - start:,} tokens")


class _Encoded:
    """Ids of an open text, block by block; counts what it has handed out."""

    def __init__(
        self, opened: io.BufferedIOBase, name: str, tokenizer: Tokenizer, *, skip: int
    ) -> None:
        self._blocks, self._tokenizer, self._skip = blocks(opened, name), tokenizer, skip
        self._name, self._bytes, self._tokens = name, 0, 0

    def __iter__(self) -> Iterator[Tensor]:
        left = self._skip
        for text in self._blocks:
            ids = self._tokenizer.encode(text)
            self._bytes += len(text.encode())
            self._tokens += len(ids)
            if len(ids) > left:
                yield ids[left:]
            left -= min(left, len(ids))
        if self._tokens == 0:
            raise ValueError(f"{self._name}: the file is empty (no text)")
        if self._tokens <= self._skip:
            raise ValueError(
                f"skip: {self._name} has {self._tokens:,} tokens, all of which are left out"
            )

    def bytes_of(self, read: int) -> float:
        """About how many bytes ``read`` tokens and those left out stand for."""
        return self._bytes * (self._skip + read) / max(1, self._tokens)


class _Shown:
    """How far a text is read: a bar on a terminal, else a line now and then."""

    def __init__(self, name: str, size: int | None) -> None:
        self._console, self._size, self._name = Console(), size, name
        self._began = self._said = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )

    def __enter__(self) -> _Shown:
        if self._console.is_terminal:
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=self._size, told="")
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, read: int, done: float) -> None:
        """``read`` tokens of this call, ``done`` bytes of the file."""
        now = time.monotonic()
        told = f"{read:,} tokens  {read / max(1e-9, now - self._began):,.0f} tok/s"
        # The first piece holds what is only done once, so the pace is that of the later ones.
        if self._first is None:
            self._first = (now, done)
        elif self._size is not None and done > self._first[1]:
            pace = (now - self._first[0]) / (done - self._first[1])
            told += f"  {clock(pace * max(0.0, self._size - done))} left"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, told=told)
        elif now - self._said >= QUIET:
            self._said = now
            self.say(told)

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began


@contextmanager
def _opened(file: Path) -> Iterator[tuple[io.BufferedIOBase, int | None]]:
    """A file and its size; of standard input nobody knows the size."""
    if str(file) == "-":
        yield cast(io.BufferedIOBase, sys.stdin.buffer), None
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {error.strerror}") from error
    with opened:
        yield opened, file.stat().st_size
