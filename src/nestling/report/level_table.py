"""The level table for a page: equal components of different blocks become one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from nestling.levels import NestedSystem
from nestling.report.results import TableRow


@dataclass(frozen=True)
class Line:
    """One line of the table: a component, and how many blocks have it."""

    row: TableRow
    count: int

    @property
    def period(self) -> str:
        """For people."""
        if self.row.period is None:
            return "never"
        return "every token" if self.row.period == 1 else f"{self.row.period:,} tokens"


def table_rows(system: NestedSystem, *, model: str) -> list[TableRow]:
    """One row for every component, fastest first."""
    numbers = system.numbers
    return [
        TableRow(
            model=model,
            number=numbers[part.name],
            period=part.level.period,
            name=part.name,
            memory=part.memory,
            rule=part.rule,
            context_flow=part.context_flow,
            parameters=part.parameters,
        )
        for part in system.components
    ]


def merged(rows: Iterable[TableRow]) -> list[Line]:
    """Lines in the order of the rows, parameters summed over blocks.

    >>> row = TableRow(model="m", number=1, period=1, name="blocks.0.mixer.k", memory="MLP",
    ...                rule="L2", context_flow="tokens", parameters=10)
    >>> lines = merged([row, replace(row, name="blocks.1.mixer.k")])
    >>> [(line.row.name, line.count, line.row.parameters) for line in lines]
    [('mixer.k', 2, 20)]
    """
    found: dict[TableRow, Line] = {}
    for row in rows:
        short = re.sub(r"^blocks\.\d+\.", "", row.name)
        # A later block may stand on a later level, because it waits for the first: one line still.
        key = replace(row, name=short, number=0, parameters=0)
        known = found.get(key)
        found[key] = (
            Line(replace(row, name=short), 1)
            if known is None
            else Line(
                replace(known.row, parameters=known.row.parameters + row.parameters),
                known.count + 1,
            )
        )
    return list(found.values())
