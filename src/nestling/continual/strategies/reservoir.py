"""A buffer in which everything that was seen is equally likely to be.

    item n is kept with probability min(1, capacity / n), in the place of one drawn at random

Vitter 1985, algorithm R.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nestling.shapes import Tensor


class Reservoir:
    """Rows of several tensors at once, for example inputs and targets.

    Args:
        capacity: rows that are kept.
        seed: of what is kept and drawn.

    Raises:
        ValueError: if there is no room for a row.

    >>> buffer = Reservoir(2)
    >>> buffer.add(torch.arange(100), torch.arange(100) * 2)
    >>> numbers, doubled = buffer.draw(5)
    >>> len(buffer), bool((numbers * 2 == doubled).all())
    (2, True)
    """

    def __init__(self, capacity: int, *, seed: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.capacity, self.seen = capacity, 0
        self.columns: tuple[Tensor, ...] = ()
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    @torch.no_grad()
    def add(self, *columns: Tensor) -> None:
        """See rows, and keep some of them.

        Raises:
            ValueError: if the columns differ in rows, or are not those of before.
        """
        if len({len(column) for column in columns}) != 1:
            raise ValueError(f"columns: expected as many rows in each, got {_rows(columns)}")
        if not self.columns:
            self.columns = tuple(c.new_zeros(self.capacity, *c.shape[1:]) for c in columns)
        if [c.shape[1:] for c in columns] != [c.shape[1:] for c in self.columns]:
            raise ValueError(f"columns: expected rows of {_shapes(self.columns)}, "
                             f"got {_shapes(columns)}")  # fmt: skip
        for row in range(len(columns[0])):
            place = self.seen
            if place >= self.capacity:
                place = int(torch.randint(self.seen + 1, (), generator=self._generator))
            self.seen += 1
            if place < self.capacity:
                for kept, column in zip(self.columns, columns, strict=True):
                    kept[place] = column[row]

    def draw(self, rows: int) -> tuple[Tensor, ...]:
        """Rows of what is kept, each drawn by itself.

        Raises:
            ValueError: if nothing is kept yet.
        """
        if not self.seen:
            raise ValueError("draw: the buffer is empty")
        index = torch.randint(len(self), (rows,), generator=self._generator)
        return tuple(column[index.to(column.device)] for column in self.columns)

    def state(self) -> dict[str, Any]:
        """All that goes on; not copied."""
        return {
            "columns": [column[: len(self)] for column in self.columns],
            "seen": self.seen,
            "capacity": self.capacity,
            "generator": self._generator.get_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            ValueError: if it is of a buffer of another size.
        """
        if state["capacity"] != self.capacity:
            raise ValueError(
                f"state: expected a buffer of {self.capacity}, got {state['capacity']}"
            )
        self.seen = int(state["seen"])
        self._generator.set_state(state["generator"].cpu())
        self.columns = ()
        for kept in state["columns"]:
            column = kept.new_zeros(self.capacity, *kept.shape[1:])
            column[: len(kept)] = kept
            self.columns = (*self.columns, column)


def _rows(columns: tuple[Tensor, ...]) -> list[int]:
    return [len(column) for column in columns]


def _shapes(columns: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(column.shape[1:]) for column in columns]
