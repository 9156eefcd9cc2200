"""The real texts that ship with the package, and how a text is split into two parts.

Each domain is learned from its head and measured on its tail: the split is by position, so that
no measured byte was ever trained on. ``SOURCES.md`` beside this file names origin and licence.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from nestling.data import read_documents

TITLES = {
    "english": "English novel (Pride and Prejudice)",
    "python": "Python source (standard library)",
    "chinese": "Chinese poetry (Tang dynasty)",
    "spanish": "Spanish scripture (Reina-Valera 1909)",
    "tables": "Character tables (Unicode)",
}
"""The shipped domains in the order the demo learns them."""


@dataclass(frozen=True)
class Domain:
    """One kind of text: what is trained on and what is only measured.

    Attributes:
        name: short name, used in tables and results.
        title: a line for people.
        train: the head, as bytes.
        held_out: the tail, as bytes; never trained on.
    """

    name: str
    title: str
    train: bytes
    held_out: bytes


def shipped() -> list[tuple[str, str]]:
    """Name and text of every shipped domain, in the demo's order.

    >>> [name for name, _ in shipped()]
    ['english', 'python', 'chinese', 'spanish', 'tables']
    >>> shipped()[0][1][:19]
    'PRIDE AND PREJUDICE'
    """
    folder = resources.files(__name__)
    return [
        (name, gzip.decompress((folder / f"{name}.txt.gz").read_bytes()).decode("utf-8"))
        for name in TITLES
    ]


def read_texts(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """One domain for each of the user's paths; equal names are told apart by a number.

    A folder or a JSONL file is one domain: its documents, with empty lines in between.

    Raises:
        ValueError: naming the file, if it is missing, empty or not UTF-8.
    """
    texts: dict[str, str] = {}
    for path in paths:
        text = "\n\n".join(document.text for document in read_documents([path]))
        name, number = path.stem or str(path), 1
        while name in texts:
            number += 1
            name = f"{path.stem}-{number}"
        texts[name] = text
    return list(texts.items())


def split(name: str, text: str, *, held_out_bytes: int, least_train_bytes: int) -> Domain:
    """Hold out the tail of a text.

    The tail has ``held_out_bytes`` bytes, or a tenth of the text where that is less, rounded up
    to the next character; the rest is for training.

    Args:
        name: the domain's name.
        text: the whole text.
        held_out_bytes: wanted size of the tail, in bytes.
        least_train_bytes: what training needs at least; the tail needs as much, up to the size
            asked for.

    Raises:
        ValueError: if the text is too short for both parts.

    >>> domain = split("digits", "0123456789" * 10, held_out_bytes=8, least_train_bytes=2)
    >>> domain.held_out, len(domain.train)
    (b'23456789', 92)
    """
    data = text.encode("utf-8")
    size = min(held_out_bytes, len(data) // 10)
    cut = len(data) - size
    while cut < len(data) and data[cut] & 0xC0 == 0x80:  # never cut inside a character
        cut += 1
    if cut < least_train_bytes or len(data) - cut < min(held_out_bytes, least_train_bytes):
        raise ValueError(
            f"text: {name!r} has {len(data):,} bytes, expected at least "
            f"{11 * least_train_bytes:,}: a tenth is held out, and both parts must hold a sequence"
        )
    return Domain(name, TITLES.get(name, name), data[:cut], data[cut:])
