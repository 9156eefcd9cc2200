"""A session: the inner state of one model that goes on reading, saved so that it outlives us.

    position, state  <-  position + T, model(tokens, state)        feed, generate
    saves            <-  the last ``keep`` states                  save, rollback, fork

The state is everything that the model learned in context; its weights are not touched and not
stored. A kill at any moment leaves the last save or the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from nestling.data import Tokenizer
from nestling.memory import flatten
from nestling.models.sampling import PIECE, chooser, write_text
from nestling.session import journal
from nestling.session.readable import Readable
from nestling.session.reader import Moment, Reader, check_finite, find_reader
from nestling.session.save import Part, Save
from nestling.session.sealed import SessionError
from nestling.session.text import in_pieces, token_ids
from nestling.shapes import Tensor


class Session:
    """An open session; made by :meth:`open` or :meth:`fork`, and held by one process at a time.

    >>> import tempfile
    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Session.open(Path(folder) / "notes", model=model) as session:
    ...         _ = session.feed("what was written first")
    ...         _ = session.save()
    ...     with Session.open(Path(folder) / "notes", model=model) as session:
    ...         session.position
    22
    """

    def __init__(
        self,
        directory: Path,
        reader: Reader,
        held: ExitStack,
        moment: Moment,
        keep: int | None = None,
    ) -> None:
        self.directory = directory
        self._reader, self._held, self._now, self._keep = reader, held, moment, keep
        self._closed = False

    @classmethod
    def open(
        cls,
        directory: str | Path,
        *,
        model: Readable | None = None,
        checkpoint: str | Path | None = None,
        tokenizer: Tokenizer | None = None,
        keep: int | None = None,
        device: str | torch.device = "cpu",
    ) -> Session:
        """Open a session at its newest save, or begin one.

        Args:
            directory: of the session; made if it is not there.
            model: whose inner state it is.
            checkpoint: instead of ``model``, a ``step-*`` directory or a run (its newest); beside
                ``model``, where that came from. Neither is needed if the session was begun with a
                checkpoint that is still there.
            tokenizer: with ``model``; bytes if not given. A checkpoint brings its own.
            keep: how many saves are kept, at least 1; as before if not given (5 at first).
            device: where a checkpoint's model computes.

        Raises:
            SessionError: if the directory is no session, another process holds it, a file is
                damaged, or it is another model's.
            CheckpointError: if the checkpoint cannot be read.
        """
        directory = Path(directory)
        if keep is not None and not (journal.is_count(keep) and keep):
            raise SessionError(f"keep: expected a whole number >= 1, got {keep!r}")
        reader = find_reader(
            directory, journal.newest(directory), model=model, checkpoint=checkpoint,
            tokenizer=tokenizer, device=device,
        )  # fmt: skip
        with journal.hold(directory) as held:
            if journal.newest(directory) is None:
                moment = reader.start()
                journal.begin(directory, *reader.pack(moment, "begun"), keep=keep)
            else:
                moment = moment_at(directory, reader)
            return cls(directory, reader, held.pop_all(), moment, keep)

    @property
    def model(self) -> Readable:
        """Whose inner state it is."""
        return self._reader.model

    @property
    def tokenizer(self) -> Tokenizer:
        """Of the texts that it reads."""
        return self._reader.tokenizer

    @property
    def position(self) -> int:
        """Tokens read and written since the session began."""
        return self._now.position

    @property
    def state(self) -> Any:
        """The inner state: a value that later calls replace and never change."""
        return self._now.state

    @property
    def logits(self) -> Tensor | None:
        """Of the next token, ``(V,)``; ``None`` before the first."""
        return self._now.logits

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the inner state consists of, how many bytes it takes, and what grows."""
        return self._reader.outline.parts(self.state, position=self.position)

    def saves(self) -> list[Save]:
        """Headers of the saves that are kept, oldest first."""
        return journal.read_saves(self.directory)

    def feed(
        self,
        text: Any,
        *,
        piece: int = PIECE,
        on_piece: Callable[[int], None] | None = None,
    ) -> int:
        """Read a text; every memory is written on the way.

        It is read in pieces, so memory does not depend on its length (but see :attr:`parts`: with
        attention the state itself grows). Interrupted, the session stands after the last whole
        piece, is saved, and the interruption goes on.

        Args:
            text: a string, token ids (a tensor ``(T,)`` or a list), or something that yields such
                parts one after the other, such as an open file.
            piece: tokens that are read at once. Another cut gives the same state up to rounding,
                the same cut gives the same bits.
            on_piece: called after every piece with the number of tokens read so far.

        Returns:
            how many tokens were read.

        Raises:
            ValueError: if the text is empty or an argument is wrong; nothing was read then, but
                for the parts before one that is wrong.
            SessionError: if the state is not finite any more; the session stands before the piece.

        >>> import tempfile
        >>> from nestling.models import build
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     session = Session.open(folder, model=build("titans", width=16, heads=2, layers=1))
        ...     session.feed("abc"), session.feed([100, 101]), session.position
        (3, 2, 5)
        """
        self._check_open()
        read, start = 0, self.position
        try:
            for ids in in_pieces(token_ids(text, self.tokenizer, self.model.vocab_size), piece):
                after = self._reader.read(self._now, ids)
                check_finite({"prediction": after.logits, **flatten(after.state)})
                self._now = after
                read += len(ids)
                if on_piece is not None:
                    on_piece(read)
        except KeyboardInterrupt:
            if self.position != start:
                self.save(f"interrupted after {self.position - start:,} tokens")
            raise
        return read

    def generate(
        self,
        size: int = 500,
        *,
        temperature: float = 0.8,
        top_k: int | None = None,
        seed: int = 0,
        on_text: Callable[[str], object] | None = None,
    ) -> str:
        """Go on writing where the session stands. What it writes, it has also read.

        Args:
            size: bytes.
            temperature: 0 always takes the likeliest token.
            top_k: only the so many likeliest tokens are drawn from; ``None``: all.
            seed: of the draws.
            on_text: called with every piece of text as it comes.

        Returns:
            the text.

        Raises:
            SessionError: if nothing was read yet.
            ValueError: naming the argument; or if the model's output is not finite.
        """
        self._check_open()
        if not (journal.is_count(size) and size):
            raise ValueError(f"size: expected a whole number >= 1, got {size!r}")
        choose = chooser(temperature=temperature, top_k=top_k, seed=seed)
        if self.position == 0:
            raise SessionError("nothing was read yet: feed a text first")
        pieces: list[str] = []

        def write(piece: str) -> None:
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)

        def tokens() -> Iterator[int]:
            while True:
                assert self._now.logits is not None
                token = choose(self._now.logits)
                self._now = self._reader.read(self._now, torch.tensor([token]))
                yield token

        write_text(tokens(), self.tokenizer, size, write)
        return "".join(pieces)

    def save(self, note: str = "") -> Save:
        """Put the state on the disk; the oldest save makes room.

        Args:
            note: what happened, one line, shown with the save.

        Raises:
            SessionError: if the disk refuses (the saves before are intact), the state is not
                finite, or the model's weights have changed.
        """
        self._check_open()
        header, data = self._reader.pack(self._now, note)
        return journal.append(self.directory, header, data, keep=self._keep)

    def rollback(self, back: int = 1) -> int:
        """Forget what came after an earlier save, on the disk too.

        Args:
            back: how many saves; 0 only forgets what was not saved.

        Returns:
            the position, in tokens.

        Raises:
            SessionError: if there are not so many saves, or that one is damaged; nothing is
                forgotten then.
        """
        self._check_open()
        moment = moment_at(self.directory, self._reader, back)
        journal.drop(self.directory, back)
        self._now = moment
        return self.position

    def fork(self, directory: str | Path) -> Session:
        """A new session that begins where this one stands, saved or not; this one is untouched.

        Raises:
            SessionError: if there is something already.
        """
        self._check_open()
        directory = Path(directory)
        journal.check_free(directory)
        note = f"forked from {self.directory.resolve().name} at {self.position:,}"
        keep = self._keep or journal.read_journal(self.directory).keep
        with journal.hold(directory) as held:
            journal.begin(directory, *self._reader.pack(self._now, note), keep=keep)
            return Session(directory, self._reader, held.pop_all(), self._now, keep)

    def close(self) -> None:
        """Let other processes write it. What was not saved is lost."""
        self._held.close()
        self._closed = True

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SessionError(f"{self.directory}: this session was closed")


def moment_at(directory: Path, reader: Reader, back: int = 0) -> Moment:
    """Where a session stood so many saves ago.

    Raises:
        SessionError: if there is no such save, it is another model's, or it is damaged.
    """
    return journal.steadily(directory, lambda found: _moment(directory, reader, found, back))


def _moment(directory: Path, reader: Reader, found: journal.Journal, back: int) -> Moment:
    header = journal.read_header(directory, found, back)
    reader.check(header)
    with journal.advising(directory, found, back):
        return reader.unpack(header, journal.read_data(directory, header))
