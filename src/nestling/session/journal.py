"""A session's directory: saves that are there whole or not at all, and the journal that names them.

    SESSION/journal.json                    sealed: the saves that count, oldest first
    SESSION/save-00000007/state.safetensors
                          state.json        sealed header with the digest of the tensors

The journal names every save with its header's seal, so that nothing can be swapped. A save first
appears as a directory, flushed to the disk; it counts from the moment at which the new journal
takes the old one's place. A kill before that moment leaves the session as it was. Directories that
no journal names are removed by the next save.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from nestling.session.save import FORMAT, SCHEMA, Save, check_format, digest_of, is_count, is_digest
from nestling.session.sealed import SessionError, digest, read_bytes, seal, unseal
from nestling.storage.durable import appearing, cause, remove, replace, sweep, sync
from nestling.storage.durable import seal as flush
from nestling.storage.lock import lock

JOURNAL = "journal.json"
TENSORS, HEADER = "state.safetensors", "state.json"
KEEP = 5
"""Saves that are kept where nothing else is asked for."""
_NAME = re.compile(r"save-(\d{8,16})")
Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A save that counts: its number, and the seal of its header."""

    number: int
    seal: str


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What a session consists of.

    Attributes:
        following: number of the next save; numbers are never used twice.
        keep: how many saves are kept.
        saves: oldest first.
    """

    following: int = 1
    keep: int = KEEP
    saves: tuple[Entry, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        saves = [dataclasses.asdict(entry) for entry in self.saves]
        return {"format": FORMAT, "schema": SCHEMA, "following": self.following,
                "keep": self.keep, "saves": saves}  # fmt: skip

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: Path) -> Journal:
        """Read what :meth:`to_dict` wrote, trusting none of it.

        Raises:
            SessionError: naming ``where``.
        """
        check_format(values, where)
        fields: tuple[Any, ...] = tuple(map(values.get, ("following", "keep", "saves")))
        following, keep, saves = fields
        good = (
            len(values) == 5
            and is_count(following)
            and is_count(keep)
            and keep
            and isinstance(saves, list)
            and all(
                isinstance(entry, dict)
                and entry.keys() == {"number", "seal"}
                and is_count(entry["number"])
                and is_digest(entry["seal"])
                for entry in saves
            )
        )
        numbers = [0, *(entry["number"] for entry in saves), following] if good else []
        if not good or any(a >= b for a, b in pairwise(numbers)):
            raise SessionError(f"{where}: damaged: not a journal of saves in order")
        return cls(following=following, keep=keep, saves=tuple(Entry(**entry) for entry in saves))


def exists(root: Path) -> bool:
    """Whether there is a session, whole or not.

    Raises:
        SessionError: if there is something else, or a session that lost its journal.
    """
    if (root / JOURNAL).is_symlink() or (root / JOURNAL).exists():
        return True
    if not root.exists():
        return False
    if not root.is_dir():
        raise SessionError(f"{root}: expected the directory of a session, got a file")
    try:
        found = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise SessionError(f"{root}: cannot be read: {cause(error)}") from error
    if any(_NAME.fullmatch(name) for name in found):
        raise SessionError(
            f"{root / JOURNAL}: missing, although there are saves; 'nestling session import "
            f"{root / found[-1] / TENSORS} NEW' makes a new session of one"
        )
    if found:
        raise SessionError(f"{root}: neither a session nor empty (it holds {found[0]})")
    return False


def check_free(root: Path) -> None:
    """Refuse a place where a session may not begin, before a lock is put there.

    Raises:
        SessionError: if there is a session already, or something else.
    """
    if exists(root) and read_journal(root).saves:
        raise SessionError(f"{root}: there is a session already")


@contextmanager
def hold(root: Path) -> Iterator[ExitStack]:
    """Make the directory if need be, and hold it for this process.

    Yields:
        the stack that lets it go; ``pop_all()`` keeps it beyond the ``with``.

    Raises:
        SessionError: if another process holds it, or it cannot be written.
    """
    with ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(root, what="session"))
        except OSError as error:
            raise SessionError(f"{root}: cannot be written: {cause(error)}") from error
        except ValueError as error:
            raise SessionError(str(error)) from error
        yield held


def begin(root: Path, save: Save, data: bytes, *, keep: int | None = None) -> Save:
    """A new session of one save; its directory must be locked by this process.

    Raises:
        SessionError: if a session is there already, or the disk refuses.
    """
    check_free(root)
    # The journal first: saves without one are always damage.
    with _writing(root, "nothing was there before"):
        sync(root.absolute().parent)  # the directory itself may be new
        replace(root / JOURNAL, seal(Journal(keep=keep or KEEP).to_dict()))
    return append(root, save, data)


def read_journal(root: Path) -> Journal:
    """Which saves count.

    Raises:
        SessionError: if there is no session, or its journal is damaged.
    """
    if not exists(root):
        raise SessionError(f"{root}: no session is here")
    return Journal.from_dict(unseal(read_bytes(root / JOURNAL), root / JOURNAL), root / JOURNAL)


def read_header(root: Path, journal: Journal, back: int = 0) -> Save:
    """The header of the save so many saves ago.

    Raises:
        SessionError: if there is none, or it is missing, damaged, or not the one that the journal
            names.
    """
    check_depth(root, journal, back)
    entry = journal.saves[-1 - back]
    file = _folder(root, entry.number) / HEADER
    with advising(root, journal, back):
        content = unseal(read_bytes(file), file)
        if digest(content) != entry.seal:
            raise SessionError(f"{file}: damaged: not the header that the journal names")
        save = Save.from_dict(content, file)
        if save.number != entry.number:
            raise SessionError(f"{file}: damaged: it is of save {save.number}")
    return save


@contextmanager
def advising(root: Path, journal: Journal, back: int = 0) -> Iterator[None]:
    """Say with an error in a save where it is, and that one can go back to the save before."""
    try:
        yield
    except SessionError as error:
        folder, text = _folder(root, journal.saves[-1 - back].number), str(error)
        told = text if text.startswith(str(folder)) else f"{folder}: {text}"
        if back + 1 < len(journal.saves):
            command = f"nestling session rollback {root} -n {back + 1}"
            told += f"; to go back to the save before: {command}"
        raise SessionError(told) from error


def read_data(root: Path, save: Save) -> bytes:
    """The bytes of a save's tensors, as they were written.

    Raises:
        SessionError: if they are missing, truncated or changed.
    """
    return verified(_folder(root, save.number) / TENSORS, save)


def verified(file: Path, save: Save) -> bytes:
    """The bytes of a file of tensors.

    Raises:
        SessionError: if they are not those that ``save`` describes.
    """
    data = read_bytes(file, limit=save.bytes)
    if len(data) != save.bytes:
        raise SessionError(f"{file}: truncated: {len(data)} bytes, expected {save.bytes}")
    if digest_of(data) != save.sha256:
        raise SessionError(f"{file}: damaged: its content has changed since it was written")
    return data


def read_saves(root: str | Path) -> list[Save]:
    """The headers of all saves that count, oldest first; no model is needed.

    Raises:
        SessionError: if there is no session, or its journal or a header is damaged.
    """
    root = Path(root)
    return steadily(
        root,
        lambda journal: [
            read_header(root, journal, back) for back in reversed(range(len(journal.saves)))
        ],
    )


def newest(root: Path) -> Save | None:
    """The header of the newest save; ``None`` where nothing is yet.

    Raises:
        SessionError: if there is something else, or it is damaged.
    """
    if not exists(root):
        return None
    return steadily(root, lambda journal: read_header(root, journal) if journal.saves else None)


def steadily(root: Path, read: Callable[[Journal], Read]) -> Read:
    """Read without holding the lock: once more, if a writer has put other saves in place.

    Raises:
        SessionError: what ``read`` raises while nobody writes.
    """
    for _ in range(100):
        journal = read_journal(root)
        try:
            return read(journal)
        except SessionError:
            if read_journal(root) == journal:
                raise
    raise SessionError(f"{root}: is being written too fast to be read")


def append(root: Path, save: Save, data: bytes, *, keep: int | None = None) -> Save:
    """Save: afterwards the session stands there, and if it fails or is killed, where it stood.

    Args:
        root: directory, locked by this process.
        save: its header; the number is given here.
        data: the file of tensors that it describes.
        keep: from now on so many saves are kept.

    Raises:
        SessionError: if it cannot be written; the saves before are as they were.
    """
    journal = read_journal(root)
    save = dataclasses.replace(save, number=journal.following)
    folder = _folder(root, save.number)
    content = save.to_dict()
    Save.from_dict(content, "this save")  # what could not be read again is not written
    header, keep = seal(content), keep or journal.keep
    entry = Entry(number=save.number, seal=digest(content))
    newest = f"save {journal.saves[-1].number} is intact" if journal.saves else "none was there"
    with _writing(root, newest):
        if folder.exists():  # of a save that was killed before it counted
            remove(folder)
        with appearing(folder) as hidden:
            for name, content_of in ((TENSORS, data), (HEADER, header)):
                (hidden / name).write_bytes(content_of)
                flush(hidden / name)
        sync(root)
    after = Journal(following=save.number + 1, keep=keep, saves=(*journal.saves, entry)[-keep:])
    with _writing(root, f"{newest}, or this one"):
        replace(root / JOURNAL, seal(after.to_dict()))
    _collect(root, after)
    return save


def drop(root: Path, count: int) -> None:
    """Forget the newest ``count`` saves; the directory must be locked by this process.

    Raises:
        SessionError: if there are not more than so many, or the journal cannot be written.
    """
    journal = read_journal(root)
    check_depth(root, journal, count)
    if count == 0:
        return
    after = dataclasses.replace(journal, saves=journal.saves[:-count])
    with _writing(root, "the session is as it was, or rolled back"):
        replace(root / JOURNAL, seal(after.to_dict()))
    _collect(root, after)


def check_depth(root: Path, journal: Journal, back: int) -> None:
    """Refuse to go back further than there are saves.

    Raises:
        SessionError: saying how far it goes.
    """
    if not is_count(back) or back >= len(journal.saves):
        deepest = f"0 to {len(journal.saves) - 1}" if journal.saves else "nothing: it has no save"
        raise SessionError(f"{root}: saves to go back: expected {deepest}, got {back!r}")


def _collect(root: Path, journal: Journal) -> None:
    """Remove what no journal names: older saves, dropped ones, those that were never finished."""
    named = {_folder(root, entry.number).name for entry in journal.saves}
    with _writing(root, "it is saved, but older saves could not be removed"):
        sweep(root)
        for entry in sorted(root.iterdir()):
            if _NAME.fullmatch(entry.name) and entry.name not in named and not entry.is_symlink():
                remove(entry)


def _folder(root: Path, number: int) -> Path:
    return root / f"save-{number:08d}"


@contextmanager
def _writing(root: Path, told: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionError(f"{root}: could not be written: {cause(error)}; {told}") from error
