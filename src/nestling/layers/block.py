"""A block: a sequence layer, then a Continuum Memory System, both on the residual stream (NL 8.3).

x <- x + mixer(norm(x)),    x <- CMS(x)                               (NL Eq. 94-97)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from nestling.continuum.config import ContinuumConfig
from nestling.continuum.fast import UNWATCHED, Watch
from nestling.continuum.state import ContinuumState
from nestling.layers.attention import Attention, AttentionConfig, AttentionState
from nestling.layers.continuum import ContinuumMemory
from nestling.layers.continuum_levels import entry_joints, exit_joint
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying import (
    SelfModifyingConfig,
    SelfModifyingState,
    SelfModifyingTitans,
)
from nestling.layers.self_modifying_config import Writes
from nestling.levels import Component, Joint, path
from nestling.shapes import Float, Tensor

MixerConfig = SelfModifyingConfig | AttentionConfig


class SequenceLayer(Protocol):
    """What a block needs of its mixer: one call, an explicit state, and a word about itself."""

    memory: Any

    def __call__(
        self, x: Tensor, state: Any, lengths: Tensor | None, *, writes: Writes = "on"
    ) -> tuple[Tensor, Any]:
        """Residual stream and state in, output and new state out."""
        ...

    def initial_state(self, batch: int) -> Any:
        """Before the first token."""
        ...

    def components(self, name: str) -> list[Component]:
        """Its memories, and its weights as ``weights`` behind its name."""
        ...

    def liveness(self, before: Any, after: Any) -> dict[str, float]:
        """How far each memory moved."""
        ...


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """State of a block: of its sequence layer, and of its levels in context if there are any."""

    mixer: SelfModifyingState | AttentionState
    continuum: ContinuumState | None = None


class Block(nn.Module):
    """Hope's block, and with attention as the mixer a Transformer's.

    Args:
        width: D.
        heads: H.
        mixer: what the sequence layer is.
        continuum: what follows it.

    >>> import torch
    >>> block = Block(8, 2, AttentionConfig(), ContinuumConfig(hidden=16))
    >>> y, state = block(torch.randn(1, 5, 8))
    >>> y.shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, width: int, heads: int, mixer: MixerConfig, continuum: ContinuumConfig):
        super().__init__()
        self.norm = RMSNorm(width)
        self.mixer: SequenceLayer = (
            Attention(width, heads, mixer)
            if isinstance(mixer, AttentionConfig)
            else SelfModifyingTitans(width, heads, mixer)
        )
        self.continuum = ContinuumMemory(width, continuum)

    def initial_state(self, batch: int) -> BlockState:
        """Of the sequence layer and of the levels in context."""
        return BlockState(
            mixer=self.mixer.initial_state(batch), continuum=self.continuum.initial_state(batch)
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: BlockState | None = None,
        lengths: Tensor | None = None,
        *,
        writes: Writes = "on",
        watch: Watch = UNWATCHED,
    ) -> tuple[Float[Tensor, "B T D"], BlockState]:
        """Residual stream in, residual stream and new state out; the old one if writes are off."""
        state = state or self.initial_state(x.shape[0])
        y, mixer = self.mixer(self.norm(x), state.mixer, lengths, writes=writes)
        x, continuum = self.continuum(x + y, state.continuum, lengths, writes=writes, watch=watch)
        return x, BlockState(mixer=mixer, continuum=continuum)

    def components(self, name: str = "") -> list[Component]:
        """Everything in the block that holds something over time."""
        mixer, own = _mixer(name), path(name, "mixer", "weights")
        links = [
            transfer
            for entry in entry_joints(self.continuum, path(name, "continuum"))
            for transfer in mixer.then(entry)
        ]
        return [
            one.holding(self.norm, path(name, "norm")).linked(*links) if one.name == own else one
            for one in self.mixer.components(path(name, "mixer"))
        ] + self.continuum.components(path(name, "continuum"))

    def joints(self, name: str) -> tuple[Joint, Joint]:
        """Where the residual stream comes in and goes out."""
        return _mixer(name), exit_joint(self.continuum, path(name, "continuum"))


def _mixer(name: str) -> Joint:
    return Joint(path(name, "mixer", "weights"))
