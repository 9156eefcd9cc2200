"""Levels: update periods, and a system's components ordered by them."""

from nestling.levels.average import RunningAverage
from nestling.levels.component import (
    NEXT_TOKEN,
    OUTER,
    Component,
    Joint,
    Transfer,
    TransferKind,
    path,
    weights_of,
)
from nestling.levels.consolidation import Consolidation, Held, SlowLevel
from nestling.levels.dreams import dream
from nestling.levels.level import Level
from nestling.levels.surprise import Shift, Surprise
from nestling.levels.system import NestedSystem, level_numbers, ordered

__all__ = [
    "NEXT_TOKEN",
    "OUTER",
    "Component",
    "Consolidation",
    "Held",
    "Joint",
    "Level",
    "NestedSystem",
    "RunningAverage",
    "Shift",
    "SlowLevel",
    "Surprise",
    "Transfer",
    "TransferKind",
    "dream",
    "level_numbers",
    "ordered",
    "path",
    "weights_of",
]
