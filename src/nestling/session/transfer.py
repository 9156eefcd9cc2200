"""What can be done with saves as files, without their model: copy them out, in, and back.

    export   SESSION  ->  FILE.safetensors + FILE.json
    import   FILE.safetensors + FILE.json  ->  a new session
    fork     SESSION  ->  a new session that begins where it stands
    rollback forget the newest saves

Every byte is held against the digests on the way. Whether a state fits its model is seen when it
is opened.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nestling.session import journal
from nestling.session.save import Save
from nestling.session.sealed import SessionError, read_bytes, seal, unseal
from nestling.storage.durable import cause, replace

SUFFIX = ".safetensors"


def export_save(directory: str | Path, file: str | Path, *, back: int = 0) -> Save:
    """Copy a save to ``FILE.safetensors`` and its header to ``FILE.json``.

    Args:
        directory: the session.
        file: where to; must end in ``.safetensors``.
        back: how many saves before the newest.

    Raises:
        SessionError: if there is no such save, it is damaged, or a file is there already.
    """
    directory, file = Path(directory), Path(file)
    header = _header_of(file)
    for there in (file, header):
        if there.exists() or there.is_symlink():
            raise SessionError(f"{there}: exists already")
    save, data = journal.steadily(directory, lambda found: _read(directory, found, back))
    try:
        replace(file, data)
        replace(header, seal(save.to_dict()))
    except OSError as error:
        raise SessionError(f"{file}: could not be written: {cause(error)}") from error
    return save


def import_save(file: str | Path, directory: str | Path) -> Save:
    """Begin a session with an exported state, or with the files of a single save.

    Raises:
        SessionError: if the files are damaged or not of one state, or a session is there already.
    """
    file, directory = Path(file), Path(directory)
    header = _header_of(file)
    save = Save.from_dict(unseal(read_bytes(header), header), header)
    data = journal.verified(file, save)
    return _begin(directory, dataclasses.replace(save, note=f"imported from {file.name}"), data)


def fork_save(directory: str | Path, target: str | Path, *, back: int = 0) -> Save:
    """Begin a session where another stands, or stood ``back`` saves ago.

    Raises:
        SessionError: if there is no such save, it is damaged, or the target is not free.
    """
    directory, target = Path(directory), Path(target)
    save, data = journal.steadily(directory, lambda found: _read(directory, found, back))
    note = f"forked from {directory.resolve().name} at {save.position:,}"
    return _begin(target, dataclasses.replace(save, note=note), data)


def roll_back(directory: str | Path, back: int = 1) -> Save:
    """Forget the newest ``back`` saves, after a look at the one that becomes the newest.

    Raises:
        SessionError: if there are not so many, or that one is damaged; nothing is forgotten then.
    """
    directory = Path(directory)
    journal.read_journal(directory)  # where no session is, no directory is made
    with journal.hold(directory):
        save, _ = _read(directory, journal.read_journal(directory), back)
        journal.drop(directory, back)
    return save


def _read(directory: Path, found: journal.Journal, back: int) -> tuple[Save, bytes]:
    save = journal.read_header(directory, found, back)
    with journal.advising(directory, found, back):
        return save, journal.read_data(directory, save)


def _begin(directory: Path, save: Save, data: bytes) -> Save:
    journal.check_free(directory)
    with journal.hold(directory):
        return journal.begin(directory, save, data)


def _header_of(file: Path) -> Path:
    if file.suffix != SUFFIX:
        raise SessionError(f"{file}: expected a name that ends in {SUFFIX}")
    return file.with_suffix(".json")
