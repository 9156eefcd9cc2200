"""Levels: update periods, and a system's components ordered by them."""

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
from nestling.levels.level import Level
from nestling.levels.system import NestedSystem, level_numbers, ordered

__all__ = [
    "NEXT_TOKEN",
    "OUTER",
    "Component",
    "Joint",
    "Level",
    "NestedSystem",
    "Transfer",
    "TransferKind",
    "level_numbers",
    "ordered",
    "path",
    "weights_of",
]
