"""What a stacked model carries from call to call: explicit values with a batch axis.

Keys and values stand on the right: row b's are the last ``held[b]`` of the cache, zeros before
them. So what comes next stands directly behind, and distances between tokens are what they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """What is written beside one part of a matrix.

    Attributes:
        weights: dW in the form that it is kept in, held for the period.
        gathered: sum of the errors of the open period, same form.
        moments: of the rule, same form.
    """

    weights: Weights
    gathered: Weights
    moments: Mapping[str, Weights] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Where a level stands; whole numbers, which decide control flow, on the CPU.

    Attributes:
        clock: ``(B,)`` tokens in the open period.
        writes: ``(B,)`` writes so far.
        seen: ``(B,)`` tokens whose error was asked for.
        contributed: ``(B,)`` tokens whose error has been written.
    """

    clock: Tensor
    writes: Tensor
    seen: Tensor
    contributed: Tensor


@dataclass(frozen=True, kw_only=True)
class KeysValues:
    """Cache of one block's attention.

    Attributes:
        keys: ``(B, heads, L, d)``, of the last L tokens, as they were computed.
        values: the same.
    """

    keys: Float[Tensor, "B H L K"]
    values: Float[Tensor, "B H L V"]


@dataclass(frozen=True, kw_only=True)
class BlockState:
    """One block: its slots by level and matrix, and its cache.

    Attributes:
        levels: index of the level, then name of the matrix.
        cache: ``None`` before the first token, and of an encoder.
    """

    levels: Mapping[str, Mapping[str, SlotState]] = field(default_factory=dict)
    cache: KeysValues | None = None


@dataclass(frozen=True, kw_only=True)
class OpenChunk:
    """Tokens of a chunk that is not whole yet: its error cannot be known.

    Attributes:
        ids: ``(B, C)`` tokens read in it, on the CPU; C is fixed, zero behind them.
        targets: ``(B, C)`` the token after each, zero where it is not known.
        count: ``(B,)`` tokens read.
        waiting: ``(B,)`` 1 where the last of them has no target yet.
        logits: ``(B, V)`` after the last token that was observed.
    """

    ids: Tensor
    targets: Tensor
    count: Tensor
    waiting: Tensor
    logits: Tensor


@dataclass(frozen=True, kw_only=True)
class StackedState:
    """All that a stacked model knows of its texts.

    Attributes:
        blocks: of the blocks.
        clocks: of every level in context, by its index.
        position: ``(B,)`` place of the next token, for models that count them.
        held: ``(B,)`` tokens in the cache.
        open: ``None`` if the last call was no ``observe``, and of an encoder.
    """

    blocks: tuple[BlockState, ...]
    clocks: Mapping[str, Clock]
    position: Tensor
    held: Tensor
    open: OpenChunk | None = None

    @property
    def batch(self) -> int:
        """Rows B."""
        return self.position.shape[0]


Caches = tuple[KeysValues | None, ...]


def stretch(caches: Caches, end: Tensor, length: Tensor) -> Caches:
    """Of every row the ``length`` slots before ``end``, right-aligned, zeros before them.

    Args:
        caches: of all blocks, L slots each.
        end: ``(B,)`` at most L.
        length: ``(B,)`` at most ``end``.

    >>> kv = torch.arange(4.0).reshape(1, 1, 4, 1)
    >>> [one] = stretch((KeysValues(keys=kv, values=kv),), torch.tensor([3]), torch.tensor([2]))
    >>> one.keys.flatten().tolist()
    [1.0, 2.0]
    """
    first = next((one for one in caches if one is not None), None)
    width = int(length.max())
    if first is None or width == 0:
        return (None,) * len(caches)
    slots = first.keys.shape[2]
    same = bool((end == end[0]).all() & (length == length[0]).all())
    if same:
        start, stop = int(end[0]) - width, int(end[0])
        if (start, stop) == (0, slots):
            return caches
        return tuple(one and _each(one, start, stop) for one in caches)
    place = torch.arange(width)[None] - width
    index = (end[:, None] + place).clamp(min=0).to(first.keys.device)
    empty = (place < -length[:, None]).to(first.keys.device)

    def moved(x: Tensor) -> Tensor:
        found = x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        return found.masked_fill(empty[:, None, :, None], 0.0)

    return tuple(
        one and KeysValues(keys=moved(one.keys), values=moved(one.values)) for one in caches
    )


def _each(one: KeysValues, start: int, stop: int) -> KeysValues:
    return KeysValues(keys=one.keys[:, :, start:stop], values=one.values[:, :, start:stop])
