"""Layers: memories with everything that a network needs around them."""

from nestling.layers.attention import Attention, AttentionConfig
from nestling.layers.block import Block
from nestling.layers.continuum import ContinuumConfig, ContinuumMemory, matched
from nestling.layers.conv import ShortConvolution
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying import SelfModifyingConfig, SelfModifyingTitans

__all__ = [
    "Attention",
    "AttentionConfig",
    "Block",
    "ContinuumConfig",
    "ContinuumMemory",
    "RMSNorm",
    "SelfModifyingConfig",
    "SelfModifyingTitans",
    "ShortConvolution",
    "matched",
]
