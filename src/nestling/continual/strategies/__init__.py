"""Strategies: what to do about what was, while something new comes. One file each."""

from nestling.continual.strategies.base import GradientLearner, cross_entropy, scores_of
from nestling.continual.strategies.consolidated import Consolidated
from nestling.continual.strategies.sequential import Sequential

__all__ = ["Consolidated", "GradientLearner", "Sequential", "cross_entropy", "scores_of"]
