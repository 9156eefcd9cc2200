"""The console and the tables that every command prints with."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table


def new_table(*columns: str) -> Table:
    """A grid; a ``>`` behind a name means numbers.

    >>> [column.justify for column in new_table("task", "value>").columns]
    ['left', 'right']
    """
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        grid.add_column(
            name.removesuffix(">"), justify="right" if name.endswith(">") else "left",
            overflow="fold",
        )  # fmt: skip
    return grid


def new_console() -> Console:
    """Standard output, as wide as the terminal."""
    console = Console()
    # A file or a pipe has no edge to wrap at.
    return console if console.is_terminal else Console(width=200)
