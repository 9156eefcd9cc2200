"""What a language model carries from call to call: one value with a batch axis."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.layers.block import BlockState
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A chunk of the next-token loss that is not whole yet: its error cannot be known.

    Attributes:
        ids: ``(B, C)`` tokens read in it, on the CPU; C is fixed, zero behind them.
        targets: ``(B, C)`` the token after each, zero where it is not known.
        count: ``(B,)`` tokens read.
        blocks: the state that the chunk started from.
    """

    ids: Tensor
    targets: Tensor
    count: Tensor
    blocks: tuple[BlockState, ...]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What ``observe`` leaves for its next call.

    Attributes:
        hidden: ``(B, D)`` output of the last block at the last token: it predicts the next one.
        waiting: ``(B,)`` 1 where that next one has not come yet, else 0; a count, like all clocks.
        chunk: the open chunk; ``None`` if no level learns from the loss.
    """

    hidden: Tensor
    waiting: Tensor
    chunk: Chunk | None = None


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """Inner state of every block; fixed in size unless a block attends to all tokens.

    Attributes:
        blocks: of the blocks, after everything that was read.
        observed: ``None`` if the last call was no ``observe``.
    """

    blocks: tuple[BlockState, ...]
    observed: Observed | None = None
