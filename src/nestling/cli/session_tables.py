"""``nestling session list``, ``show`` and ``diff``: sessions as tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from nestling.cli.device import choose_device
from nestling.cli.opened import open_reader
from nestling.cli.tables import new_console, new_table
from nestling.session import Movement, Part, Save, SessionError, compare, read_saves
from nestling.session.journal import JOURNAL
from nestling.session.session import moment_at

EMPTY = 1e-30
"""A norm below which nothing is left that float32 could add to anything."""


def print_sessions(directory: Path) -> None:
    """One row per session in a folder; one that cannot be read has its error there.

    Raises:
        ValueError: if the folder is missing or holds no session.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder")
    inside = [directory, *sorted(entry for entry in directory.iterdir() if entry.is_dir())]
    sessions = [folder for folder in inside if (folder / JOURNAL).exists()]
    if not sessions:
        raise ValueError(
            f"{directory}: holds no session; 'nestling session feed NEW TEXT --checkpoint RUN' "
            "begins one"
        )
    grid = new_table(
        "session", "model", "position>", "state>", "grows with the text", "saves>", "last"
    )
    for folder in sessions:
        name = escape(folder.name or str(folder.resolve()))
        try:
            saves = read_saves(folder)
        except SessionError as error:
            grid.add_row(name, f"[red]{escape(str(error))}[/]")
            continue
        if saves:
            last = saves[-1]
            grid.add_row(
                name, _model(last), f"{last.position:,}", size(_bytes(last.parts)),
                _growth(last.parts), str(len(saves)), f"{last.saved_at}  {escape(last.note)}",
            )  # fmt: skip
    new_console().print(grid)


def print_session(directory: Path) -> None:
    """What a session holds, level by level, and its saves.

    Raises:
        SessionError: if there is none, or it is damaged.
    """
    saves = read_saves(directory)
    if not saves:
        raise SessionError(f"{directory}: was never saved")
    last, console = saves[-1], new_console()
    for line in (
        f"{directory}: position {last.position:,} tokens ({last.identity.tokenizer_name})",
        f"model: {_model(last)}, {last.identity.model[:12]}, "
        f"from {last.identity.checkpoint or 'an object that was given'}",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_parts(last.parts))
    for line in _levels(last):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(_saves(saves))


def print_difference(a: str, b: str | None, *, checkpoint: Path | None, device: str) -> None:
    """How far each memory moved from one save to another.

    Raises:
        ValueError: if a session or a save is missing, they are of different models, or the model
            is not to be found.
    """
    first, second = _chosen(a, 1 if b is None else 0), _chosen(b or a, 0)
    (folder, back, save), (other, other_back, other_save) = first, second
    reader = open_reader(folder, save, checkpoint=checkpoint, device=choose_device(device))
    reader.check(save)
    reader.check(other_save)
    before, after = moment_at(folder, reader, back), moment_at(other, reader, other_back)
    console = new_console()
    console.print(
        f"from {folder} save {save.number}, position {save.position:,}, "
        f"to {other} save {other_save.number}, position {other_save.position:,}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    grid = new_table("memory", "moved>")
    for movement in compare(reader.model, before.state, after.state):
        grid.add_row(escape(movement.name), _moved(movement))
    console.print(grid)


def size(count: int) -> str:
    """Bytes for people.

    >>> size(812), size(661_536), size(5 << 30)
    ('812 B', '646.0 KiB', '5.0 GiB')
    """
    if count < 1024:
        return f"{count} B"
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    step = min((count.bit_length() - 1) // 10, len(units) - 1)
    return f"{count / 1024**step:.1f} {units[step]}"


def _chosen(what: str, back: int) -> tuple[Path, int, Save]:
    """A session and how many saves ago: ``SESSION`` or ``SESSION@NUMBER``."""
    found = None if Path(what).exists() else re.fullmatch(r"(.+)@(\d+)", what)
    folder = Path(found.group(1) if found else what)
    saves = read_saves(folder)
    if found:
        numbers = [save.number for save in saves]
        if int(found.group(2)) not in numbers:
            raise SessionError(f"{what}: expected one of the saves {numbers}")
        back = len(saves) - 1 - numbers.index(int(found.group(2)))
    if back >= len(saves):
        raise SessionError(f"{folder}: has {len(saves)} saves, expected at least {back + 1}")
    return folder, back, saves[-1 - back]


def _parts(parts: Sequence[Part]) -> Table:
    grid = new_table("period>", "memory", "blocks>", "bytes>", "grows with the text", "norm>")
    for part in sorted(parts, key=lambda part: (part.fastest is None, part.fastest or 0)):
        grid.add_row(
            _period(part), escape(part.name), str(part.count), f"{part.bytes:,}", _growth([part]),
            "" if part.norm is None else f"{part.norm:.4g}",
        )  # fmt: skip
    return grid


def _levels(save: Save) -> list[str]:
    """Bytes per level, and what to think of them."""
    levels: dict[str, list[Part]] = {}
    for part in save.parts:
        levels.setdefault(_period(part), []).append(part)
    each = ", ".join(f"{_bytes(parts):,} bytes at period {name}" for name, parts in levels.items())
    told = [f"inner state: {_bytes(save.parts):,} bytes ({each})"]
    if save.grows:
        grows = sum(part.grows for part in save.parts)
        told.append(
            f"It grows by {grows:,} bytes with every token, because a layer attends to all that "
            "came before; a layer of memories keeps its size."
        )
    else:
        told.append("It keeps this size, however long the text is.")
    empty = [p.name for p in save.parts if save.position and p.norm is not None and p.norm < EMPTY]
    if empty:
        told.append(
            f"Empty: {', '.join(empty)}: all has decayed, nothing of the text is left there."
        )
    told.append("Levels that move across contexts are weights: they stay with the checkpoint.")
    return told


def _saves(saves: Sequence[Save]) -> Table:
    grid = new_table("save>", "position>", "file>", "saved at", "note")
    for save in saves:
        grid.add_row(
            str(save.number), f"{save.position:,}", size(save.bytes), save.saved_at,
            escape(save.note),
        )  # fmt: skip
    return grid


def _moved(movement: Movement) -> str:
    if movement.moved is None and movement.bytes is not None:
        before, after = movement.bytes
        return f"from {before:,} to {after:,} bytes"
    return "0" if not movement.moved else f"{movement.moved:.4f}"


def _growth(parts: Sequence[Part]) -> str:
    grows = sum(part.grows for part in parts)
    return f"yes, {grows:,} bytes a token" if grows else "no"


def _period(part: Part) -> str:
    ends = ["never" if p is None else f"{p:,}" for p in (part.fastest, part.slowest)]
    return ends[0] if ends[0] == ends[1] else " to ".join(ends)


def _model(save: Save) -> str:
    return escape(f"{save.identity.preset}, {save.identity.parameters:,} parameters")


def _bytes(parts: Sequence[Part]) -> int:
    return sum(part.bytes for part in parts)
