"""Optimizers: which parameters decay, and levels that move at their own period."""

from nestling.optim.groups import adamw, decay_groups
from nestling.optim.levelwise import LevelwiseOptimizer, Move, Moved, NonFiniteError
from nestling.optim.memories import memories

__all__ = [
    "LevelwiseOptimizer",
    "Move",
    "Moved",
    "NonFiniteError",
    "adamw",
    "decay_groups",
    "memories",
]
