"""Memories, their objectives and learning rules, and the state they live in."""

from nestling.memory.linear import LinearMemory
from nestling.memory.mlp import MLPMemory
from nestling.memory.objective import L2, DotProduct, Huber, Lp
from nestling.memory.orthogonal import newton_schulz
from nestling.memory.rule import (
    Decay,
    DecayToInitial,
    Delta,
    Keep,
    LearningRule,
    Momentum,
    NewtonSchulz,
)
from nestling.memory.softmax import SoftmaxMemory
from nestling.memory.state import (
    GatedTokens,
    MemoryState,
    Tokens,
    detach,
    flatten,
    map_tensors,
    unflatten,
)

__all__ = [
    "L2",
    "Decay",
    "DecayToInitial",
    "Delta",
    "DotProduct",
    "GatedTokens",
    "Huber",
    "Keep",
    "LearningRule",
    "LinearMemory",
    "Lp",
    "MLPMemory",
    "MemoryState",
    "Momentum",
    "NewtonSchulz",
    "SoftmaxMemory",
    "Tokens",
    "detach",
    "flatten",
    "map_tensors",
    "newton_schulz",
    "unflatten",
]
