"""The Continuum Memory System in context: levels as values, and what writes them (NL 7.1)."""

from nestling.continuum.chunked import Chain, chunked
from nestling.continuum.config import (
    VARIANTS,
    AcrossContexts,
    ContinuumConfig,
    ContinuumLevel,
    InContext,
    Independent,
    Nested,
    Sequential,
    Variant,
    in_context,
)
from nestling.continuum.fast import Boundary, Fast, OnBoundary, Watch
from nestling.continuum.recurrent import recurrent
from nestling.continuum.rule import Adam, DeltaGradientDescent, GradientDescent, HeavyBall
from nestling.continuum.source import Backprop, Local
from nestling.continuum.state import ContinuumState, LevelState

__all__ = [
    "VARIANTS",
    "AcrossContexts",
    "Adam",
    "Backprop",
    "Boundary",
    "Chain",
    "ContinuumConfig",
    "ContinuumLevel",
    "ContinuumState",
    "DeltaGradientDescent",
    "Fast",
    "GradientDescent",
    "HeavyBall",
    "InContext",
    "Independent",
    "LevelState",
    "Local",
    "Nested",
    "OnBoundary",
    "Sequential",
    "Variant",
    "Watch",
    "chunked",
    "in_context",
    "recurrent",
]
