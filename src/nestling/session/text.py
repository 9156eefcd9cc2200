"""Text of any length as pieces of a fixed number of tokens."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from nestling.data import Tokenizer
from nestling.shapes import Tensor


def token_ids(text: Any, tokenizer: Tokenizer, vocab_size: int) -> Iterator[Tensor]:
    """Ids ``(T,)`` of a string, of ids, or of something that yields such parts, as they come.

    Strings that come one after the other are encoded one by one: bytes do not notice, a tokenizer
    of words would join what is cut inside a word. Cut at the ends of lines.

    Raises:
        ValueError: naming what is none of them; the ids of a part are checked before it counts.
    """
    if isinstance(text, str | torch.Tensor):
        yield _part(text, tokenizer, vocab_size)
    elif isinstance(text, list | tuple) and all(type(item) is int for item in text):
        yield _part(torch.tensor(text, dtype=torch.long), tokenizer, vocab_size)
    elif isinstance(text, Iterable) and not isinstance(text, bytes | bytearray | dict):
        for item in text:
            yield _part(item, tokenizer, vocab_size)
    else:
        raise _unknown(type(text).__name__)


def blocks(opened: io.BufferedIOBase, name: str, *, size: int = 1 << 14) -> Iterator[str]:
    """The text of an open file in blocks of about ``size`` bytes, cut at the ends of lines.

    Args:
        opened: UTF-8, with or without a byte order mark; also a pipe.
        name: for errors.
        size: bytes. A line that is much longer is cut inside.

    Raises:
        ValueError: naming the place of the first byte that is not UTF-8.

    >>> list(blocks(io.BytesIO("one\\ntwo né\\nthree".encode()), "here", size=8))
    ['one\\n', 'two né\\n', 'three']
    """
    decoder, held, read = codecs.getincrementaldecoder("utf-8-sig")(), "", 0
    last = False
    while not last:
        data = opened.read(size)
        last = not data
        try:
            held += decoder.decode(data, final=last)
        except UnicodeDecodeError as error:
            # error.start counts from what the decoder had held back
            place = read - (len(error.object) - len(data)) + error.start
            byte = error.object[error.start]
            raise ValueError(f"{name}: not UTF-8: byte 0x{byte:02x} at offset {place}") from error
        read += len(data)
        end = len(held) if last or len(held) > 16 * size else _line_end(held)
        if end:
            yield held[:end]
            held = held[end:]


def _line_end(text: str) -> int:
    """Behind the last line end that is followed by something else than white space."""
    end = len(text)
    while (end := text.rfind("\n", 0, end)) >= 0:
        if not text[end + 1 : end + 2].isspace() and end + 1 < len(text):
            return end + 1
    return 0


def in_pieces(ids: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same ids in pieces of ``size``, the last one shorter.

    Raises:
        ValueError: if ``size`` is below 1 or there are no ids at all.

    >>> [piece.tolist() for piece in in_pieces([torch.arange(3), torch.arange(4)], 5)]
    [[0, 1, 2, 0, 1], [2, 3]]
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"piece: expected a whole number >= 1, got {size!r}")
    held: list[Tensor] = []
    missing, empty = size, True
    for part in ids:
        start = 0
        while start < len(part):
            taken = part[start : start + missing].long()
            start, missing, empty = start + len(taken), missing - len(taken), False
            held.append(taken)
            if missing == 0:
                yield torch.cat(held)
                held, missing = [], size
    if held:
        yield torch.cat(held)
    if empty:
        raise ValueError("text: expected at least one token, got none")


def _part(item: Any, tokenizer: Tokenizer, vocab_size: int) -> Tensor:
    if isinstance(item, str):
        return tokenizer.encode(item)
    if not isinstance(item, torch.Tensor):
        raise _unknown(f"something that yields {type(item).__name__}")
    return _checked(item, vocab_size)


def _checked(ids: Tensor, vocab_size: int) -> Tensor:
    if ids.dim() != 1 or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise _unknown(f"{ids.dtype} {tuple(ids.shape)}")
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        wrong = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise ValueError(f"text: expected ids from 0 to {vocab_size - 1}, got {wrong}")
    return ids.cpu()


def _unknown(what: str) -> ValueError:
    return ValueError(
        "text: expected a string, whole numbers of shape (T,), or something that yields them, "
        f"got {what}"
    )
