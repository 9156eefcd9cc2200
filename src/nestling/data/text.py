"""Packed, resumable streams of text: batch n is a function of the ids, the seed and n.

    random windows:  row b of batch n starts at  u(seed, n, b)  mod (N - T)
    contiguous:      row b of batch n starts at  b floor(N / B) + n T  mod N

Because nothing else enters, the whole position of a stream is the one number ``n``, and a resumed
stream gives the very batches that an uninterrupted one would have given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from nestling.data.files import Document, encode_documents, read_documents
from nestling.data.tokenizer import ByteTokenizer, Decoder, Tokenizer, load_tokenizer
from nestling.shapes import Int, Tensor

__all__ = [
    "ByteTokenizer",
    "Decoder",
    "Document",
    "TextStream",
    "Tokenizer",
    "encode_documents",
    "hold_out",
    "load_tokenizer",
    "read_documents",
]

Order = Literal["random", "contiguous"]


class TextStream:
    """Batches of next-token prediction from one long row of ids.

    Args:
        ids: ``(N,)``, any integer dtype.
        batch: rows B of a batch.
        length: tokens T of a row.
        seed: of the random windows.
        order: ``"random"`` windows, drawn independently; or ``"contiguous"``, where every row
            reads on where it stopped (and wraps around at the end), so that a model's inner state
            can be carried from batch to batch.

    Raises:
        ValueError: if ``ids`` is not one row of integers or is shorter than ``length + 1``
            tokens, or another argument is out of range.

    >>> stream = TextStream(torch.arange(10), batch=2, length=3, order="contiguous")
    >>> inputs, targets = stream.next()
    >>> inputs.tolist(), targets.tolist()
    ([[0, 1, 2], [5, 6, 7]], [[1, 2, 3], [6, 7, 8]])
    >>> stream.next()[0].tolist()
    [[3, 4, 5], [8, 9, 0]]
    """

    def __init__(
        self,
        ids: Tensor,
        *,
        batch: int,
        length: int,
        seed: int = 0,
        order: Order = "random",
    ) -> None:
        if ids.ndim != 1 or ids.is_floating_point() or ids.is_complex():
            raise ValueError(
                f"ids: expected one axis of integers, got {tuple(ids.shape)} {ids.dtype}"
            )
        _at_least("batch", batch, 1)
        _at_least("length", length, 1)
        _at_least("seed", seed, 0)
        if order not in ("random", "contiguous"):
            raise ValueError(f"order: expected 'random' or 'contiguous', got {order!r}")
        if len(ids) < length + 1:
            raise ValueError(
                f"text: {len(ids)} tokens are shorter than one sequence: length {length} needs at "
                f"least {length + 1}; give more text or a smaller length"
            )
        self.ids, self.batch, self.length, self.seed, self.order = ids, batch, length, seed, order
        self.batches = 0
        self._fingerprint: str | None = None

    def next(self) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """The next batch: inputs and targets, int64, the targets one token further on."""
        n, size = self.batches, len(self.ids)
        if self.order == "random":
            # Random numbers by counter, so that no generator state has to be kept. Raw bits and
            # not Generator.integers, whose algorithm NumPy does not promise to keep.
            bits = np.random.Philox(key=self.seed, counter=[0, 0, 0, n]).random_raw(self.batch)
            starts = torch.from_numpy((bits % np.uint64(size - self.length)).astype(np.int64))
        else:
            starts = torch.arange(self.batch) * (size // self.batch) + n * self.length
        window = (starts[:, None] + torch.arange(self.length + 1)) % size
        rows = self.ids[window.to(self.ids.device)].long()
        self.batches = n + 1
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def fingerprint(self) -> str:
        """Digest of the ids: tells whether a checkpoint belongs to this text."""
        if self._fingerprint is None:
            data = self.ids.detach().cpu().contiguous().numpy()
            digest = hashlib.sha256(str(data.dtype).encode())
            digest.update(data.data)
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    def state_dict(self) -> dict[str, Any]:
        """The position, and what it is a position in. Plain numbers and strings."""
        return {
            "batches": self.batches,
            "order": self.order,
            "batch": self.batch,
            "length": self.length,
            "seed": self.seed,
            "tokens": len(self.ids),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of :meth:`state_dict`.

        Raises:
            ValueError: naming what differs, if the position belongs to another stream.
        """
        own = self.state_dict()
        missing = sorted(own.keys() - state.keys())
        if missing:
            raise ValueError(f"stream state: expected {sorted(own)}, {missing} missing")
        differs = [name for name in own if name != "batches" and own[name] != state[name]]
        if {"tokens", "fingerprint"} & set(differs):
            raise ValueError(
                f"stream state: the text is not the one that the position belongs to: "
                f"{state['tokens']} tokens then, {own['tokens']} now"
            )
        if differs:
            told = ", ".join(f"{name} {state[name]!r} then, {own[name]!r} now" for name in differs)
            raise ValueError(f"stream state: the stream is not the same: {told}")
        self.batches = int(state["batches"])


def hold_out(
    ids: Tensor,
    *,
    fraction: float = 0.05,
    length: int = 256,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Split ids into a part to train on and a part to measure on.

    The text is cut into up to 16 stretches of equal size and the end of each is held out, so that
    a corpus of several books, or a folder of files, is measured on all of it and not on its last
    page. There are fewer stretches where a held-out piece would be shorter than ``4 length``.

    Args:
        ids: ``(N,)``.
        fraction: held out, in [0, 1).
        length: tokens of a sequence.
        most: at most so many tokens are held out.

    Returns:
        (train, held out); the second is empty for ``fraction`` 0.

    Raises:
        ValueError: if ``fraction`` is out of range.

    >>> train, held = hold_out(torch.arange(100), fraction=0.16, length=2)
    >>> held.tolist()
    [42, 43, 44, 45, 46, 47, 48, 49, 92, 93, 94, 95, 96, 97, 98, 99]
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction: expected a number in [0, 1), got {fraction}")
    held = int(len(ids) * fraction)
    held = held if most is None else min(held, most)
    stretches = max(1, min(16, held // (4 * length)))
    size, piece = len(ids) // stretches, held // stretches
    if piece == 0:
        return ids, ids[:0]
    kept, out, start = [], [], 0
    for index in range(stretches):
        stop = len(ids) if index == stretches - 1 else start + size
        kept.append(ids[start : stop - piece])
        out.append(ids[stop - piece : stop])
        start = stop
    return torch.cat(kept), torch.cat(out)


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")
