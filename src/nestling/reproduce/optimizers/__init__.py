"""Optimizers, measured: NL Fig. 4, 11 and 12, Eq. 45, section 4.3, and learning on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.reproduce.job import Size
from nestling.reproduce.measured import Measured, Measurement, Measurements, Place, Row
from nestling.reproduce.optimizers import (
    cost,
    digits,
    landscapes,
    memory,
    orthogonal_tasks,
    training,
    training_page,
)

PAGE, FILE = "docs/optimizers.md", "optimizers"


@dataclass(frozen=True)
class _Part:
    """What is measured, and its places in the page; modules have the same two names."""

    measurements: Measurements
    PLACES: tuple[Place, ...]


def _target(title: str, *parts: Any) -> Measured:
    def measurements(data: Path, size: Size, rows: Sequence[Row]) -> list[Measurement]:
        return [one for part in parts for one in part.measurements(data, size, rows)]

    places = tuple(place for part in parts for place in part.PLACES)
    return Measured(title=title, measurements=measurements, places=places, page=PAGE, file=FILE)


LEARNING = _Part(training.measurements, training_page.PLACES)
ABLATIONS = _Part(training.ablations, training_page.ABLATIONS)
TARGETS = {
    "optimizers": _target(
        "optimizers, all of it", landscapes, orthogonal_tasks, memory, LEARNING, ABLATIONS, cost,
        digits,
    ),
    "fig4": _target("curved valleys: momentum against delta momentum (NL Fig. 4)", landscapes),
    "fig11": _target("models trained with each optimizer (NL Fig. 11)", LEARNING),
    "fig12": _target("what a step costs (NL Fig. 12)", cost),
}  # fmt: skip
