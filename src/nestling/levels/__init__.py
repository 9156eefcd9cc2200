"""Levels: update periods, and the ordering of a system's components by them."""

from nestling.levels.level import Level
from nestling.levels.system import Component, level_numbers, ordered

__all__ = ["Component", "Level", "level_numbers", "ordered"]
