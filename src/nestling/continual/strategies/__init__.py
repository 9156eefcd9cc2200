"""Strategies: what to do about what was, while something new comes. One file each."""

from nestling.continual.strategies.averaged import Averaged
from nestling.continual.strategies.base import GradientLearner, cross_entropy, scores_of
from nestling.continual.strategies.class_means import ClassMeans
from nestling.continual.strategies.consolidated import Consolidated
from nestling.continual.strategies.context_reader import ContextReader
from nestling.continual.strategies.der import DarkReplay
from nestling.continual.strategies.discriminant import StreamingDiscriminant
from nestling.continual.strategies.ewc import EWC
from nestling.continual.strategies.fisher import diagonal_fisher
from nestling.continual.strategies.fourier import FourierFeatures
from nestling.continual.strategies.in_context import InContext
from nestling.continual.strategies.least_squares import LeastSquares, RandomFeatures
from nestling.continual.strategies.low_rank import LowRank, Pairs, linear_maps
from nestling.continual.strategies.lwf import LwF
from nestling.continual.strategies.nested_discriminant import NestedDiscriminant
from nestling.continual.strategies.replay import Replay
from nestling.continual.strategies.reservoir import Reservoir
from nestling.continual.strategies.sequential import Sequential

__all__ = [
    "EWC",
    "Averaged",
    "ClassMeans",
    "Consolidated",
    "ContextReader",
    "DarkReplay",
    "FourierFeatures",
    "GradientLearner",
    "InContext",
    "LeastSquares",
    "LowRank",
    "LwF",
    "NestedDiscriminant",
    "Pairs",
    "RandomFeatures",
    "Replay",
    "Reservoir",
    "Sequential",
    "StreamingDiscriminant",
    "cross_entropy",
    "diagonal_fisher",
    "linear_maps",
    "scores_of",
]
