"""Optimizers: memories of gradients as drop-in torch optimizers, and levels with their own period.

M3, DeltaMomentum, DMGD, PreconditionedMomentum, AdaMuon     each a GradientRule (a value)
DGD, GGD                                                     for layers with known inputs
GeneralizedMomentum                                          any GradientRule
"""

from nestling.optim.adam import adam
from nestling.optim.delta_momentum import DeltaMomentum, delta_momentum
from nestling.optim.dgd import DGD, GGD
from nestling.optim.dmgd import DMGD, dmgd
from nestling.optim.generalized import GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import GradientMemory, Orthogonal, SecondMoment
from nestling.optim.gradient_rule import GradientRule
from nestling.optim.groups import adamw, decay_groups
from nestling.optim.levelwise import LevelwiseOptimizer, Move, Moved, NonFiniteError
from nestling.optim.m3 import M3, m3, m3_as_printed
from nestling.optim.memories import memories
from nestling.optim.muon import AdaMuon, adamuon, muon
from nestling.optim.named import OPTIMIZERS, optimizer_named
from nestling.optim.preconditioned import PreconditionedMomentum, preconditioned_momentum
from nestling.optim.roles import roles

__all__ = [
    "DGD",
    "DMGD",
    "GGD",
    "M3",
    "OPTIMIZERS",
    "AdaMuon",
    "DeltaMomentum",
    "GeneralizedMomentum",
    "GradientMemory",
    "GradientRule",
    "Handling",
    "LevelwiseOptimizer",
    "Move",
    "Moved",
    "NonFiniteError",
    "Orthogonal",
    "Others",
    "PreconditionedMomentum",
    "SecondMoment",
    "adam",
    "adamuon",
    "adamw",
    "decay_groups",
    "delta_momentum",
    "dmgd",
    "m3",
    "m3_as_printed",
    "memories",
    "muon",
    "optimizer_named",
    "preconditioned_momentum",
    "roles",
]
