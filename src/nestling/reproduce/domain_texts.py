"""Texts of the domain streams: five kinds of text to learn one after the other, and to keep.

    test stream:        books, Python, a German manual, Cherokee, C headers
    validation stream:  Perl, a French manual, Gujarati, JavaScript, wiki text

Whatever is chosen (step sizes, strengths, periods) is chosen on the validation stream, which shares
no text with the test stream. Every experience is rows of bytes, spread evenly over the first nine
tenths of its text; what is measured comes from the last tenth.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.continual.protocol import Batch, Experience

MOST = 6_000_000  # characters of a text that are read

Read = Callable[[Path], str]


def _text(name: str) -> Read:
    def read(data: Path) -> str:
        with lzma.open(data / name, "rt", encoding="utf8") as handle:
            return handle.read(MOST)

    return read


def _books(data: Path) -> str:
    found: list[str] = []
    with lzma.open(data / "books_pg19like/train.jsonl.xz", "rt", encoding="utf8") as handle:
        for line in handle:
            found.append(json.loads(line)["text"])
            if sum(map(len, found)) >= MOST:
                break
    return "\n".join(found)[:MOST]


def _verses(language: str) -> Read:
    whole = _text(f"bible_parallel/{language}.tsv.xz")

    def read(data: Path) -> str:
        return "\n".join(line.split("\t", 1)[1] for line in whole(data).splitlines())

    return read


def _wiki(data: Path) -> str:
    files = sorted((data / "wikitext2_valid_test").glob("*valid*"))
    if not files:
        raise ValueError(f"data: {data} has no wiki text")
    with lzma.open(files[0], "rt", encoding="utf8") as handle:
        return handle.read(MOST)


STREAMS: dict[str, dict[str, Read]] = {
    "test": {
        "books": _books,
        "Python": _text("code/python311_stdlib.py.txt.xz"),
        "German": _text("debian_reference/de.txt.xz"),
        "Cherokee": _verses("chr"),
        "C headers": _text("code/c_headers_5MB.txt.xz"),
    },
    "validation": {
        "Perl": _text("code/perl536_modules_5MB.txt.xz"),
        "French": _text("debian_reference/fr.txt.xz"),
        "Gujarati": _verses("guj"),
        "JavaScript": _text("code/javascript.txt.xz"),
        "wiki": _wiki,
    },
}


@dataclass(frozen=True)
class Domains:
    """A stream's experiences to learn and those to measure on, in the same order."""

    train: list[Experience]
    test: list[Experience]


def domains(
    data: Path, stream: str, *, rows: int, held_out: int, length: int, names: Sequence[str] = ()
) -> Domains:
    """Read a stream.

    Args:
        data: folder of the texts.
        stream: a name in ``STREAMS``.
        rows: sequences of an experience.
        held_out: sequences of it that are measured.
        length: bytes of a sequence.
        names: only these domains, in this order; none: all.

    Raises:
        ValueError: if a text is too short, or a name is unknown.
    """
    if stream not in STREAMS:
        raise ValueError(f"stream: expected one of {list(STREAMS)}, got {stream!r}")
    readers = STREAMS[stream]
    unknown = sorted(set(names) - set(readers))
    if unknown:
        raise ValueError(f"names: expected some of {list(readers)}, got {unknown[0]!r}")
    train, test = [], []
    for name in names or readers:
        text = readers[name](data).encode()
        cut = len(text) * 9 // 10
        train.append(spread(name, text[:cut], rows=rows, length=length))
        test.append(spread(name, text[cut:], rows=held_out, length=length))
    return Domains(train, test)


def spread(name: str, text: bytes, *, rows: int, length: int) -> Experience:
    """Rows that share no target, spread evenly over a text.

    Raises:
        ValueError: if the text is too short for so many.

    >>> spread("a", b"abcdefghi", rows=2, length=2).items.inputs.tolist()
    [[97, 98], [103, 104]]
    """
    there = (len(text) - 1) // length
    if there < rows:
        raise ValueError(f"experience {name!r}: {len(text)} bytes give {there} rows, not {rows}")
    ids = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    firsts = [i * (there - 1) // max(rows - 1, 1) * length for i in range(rows)]
    cut = torch.stack([ids[first : first + length + 1] for first in firsts])
    return Experience(name, Batch(cut[:, :-1], cut[:, 1:]))
