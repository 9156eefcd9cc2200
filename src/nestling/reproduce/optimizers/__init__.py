"""Optimizers, measured: NL Fig. 4, 11 and 12, Eq. 45, section 4.3, and learning on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measured, Measurement, Row
from nestling.reproduce.optimizers import landscapes, memory, orthogonal_tasks

PAGE, FILE = "docs/optimizers.md", "optimizers"


def _target(title: str, *modules: Any) -> Measured:
    def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
        return [one for module in modules for one in module.measurements(data, size, rows)]

    places = tuple(place for module in modules for place in module.PLACES)
    return Measured(title=title, measurements=measurements, places=places, page=PAGE, file=FILE)


TARGETS = {
    "optimizers": _target("optimizers, all of it", landscapes, orthogonal_tasks, memory),
    "fig4": _target("curved valleys: momentum against delta momentum (NL Fig. 4)", landscapes),
}
