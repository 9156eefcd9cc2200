"""Verses of one book in many languages: to learn one after the other, and to translate.

    a language:   verse "\\n" verse "\\n" ...           cut into rows of bytes
    a pair:       a verse, and the same in English      to translate

Which verses are held out is a function of the verse's name alone, so they are the same ones in
every language: no language is tested on what another one has told.
"""

from __future__ import annotations

import lzma
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nestling.continual.protocol import Experience
from nestling.reproduce.domain_texts import Domains, spread

ENGLISH = "eng"
LANGUAGES = {
    "English": ENGLISH,
    "Cherokee": "chr",
    "Ewe": "ewe",
    "Manx": "glv",
    "Potawatomi": "pot",
    "Coptic": "cop",
    "Estonian": "est",
    "Swahili": "swh",
    "Ukrainian": "ukr",
    "Syriac": "syr",
    "Gujarati": "guj",
}
"""Name to file."""

STREAMS = {
    "test": ("English", "Cherokee", "Ewe", "Manx", "Potawatomi"),
    "validation": ("Estonian", "Gujarati", "Swahili", "Ukrainian", "Syriac"),
}
"""Languages to learn one after the other; what is chosen is chosen on the second, which shares no
language with the first."""

Part = Literal["train", "validation", "test"]
PARTS: dict[int, Part] = {0: "test", 1: "validation"}


def part_of(verse: str) -> Part:
    """Which part a verse belongs to, by its name: one of twenty to test, one to validate.

    >>> [part_of(f"MAT.1.{number}") for number in (1, 11, 25)]
    ['train', 'train', 'train']
    """
    return PARTS.get(zlib.crc32(verse.encode()) % 20, "train")


def verses(data: Path, language: str) -> dict[str, str]:
    """The verses of a language by name, in the order of the book.

    Raises:
        ValueError: if the language is unknown, or its file is not there.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language: expected one of {list(LANGUAGES)}, got {language!r}")
    file = data / f"bible_parallel/{LANGUAGES[language]}.tsv.xz"
    if not file.is_file():
        raise ValueError(f"data: {file} is not there")
    with lzma.open(file, "rt", encoding="utf8") as handle:
        named = (line.rstrip("\n").split("\t", 1) for line in handle)
        return dict(named)


def languages(
    data: Path, names: Sequence[str], *, rows: int, held_out: int, length: int
) -> Domains:
    """Experiences of languages, to learn and to measure on, in the order given.

    Args:
        data: folder of the texts.
        names: of the languages.
        rows: sequences of an experience.
        held_out: sequences of it that are measured.
        length: bytes of a sequence.

    Raises:
        ValueError: if a text is too short, or a name is unknown.
    """
    train: list[Experience] = []
    test: list[Experience] = []
    for name in names:
        found = verses(data, name)
        for part, into, size in (("train", train, rows), ("test", test, held_out)):
            text = "\n".join(text for verse, text in found.items() if part_of(verse) == part)
            into.append(spread(name, text.encode(), rows=size, length=length))
    return Domains(train, test)


@dataclass(frozen=True)
class Pair:
    """A verse in a language, and in English."""

    source: str
    target: str

    @property
    def longer(self) -> int:
        """Bytes of the longer side."""
        return max(len(self.source.encode()), len(self.target.encode()))


def pairs(data: Path, language: str, part: Part, *, longest: int) -> list[Pair]:
    """Verses of which neither side is longer than ``longest`` bytes, by name.

    Held out are only verses whose English occurs in no training verse.

    Raises:
        ValueError: if there is none.
    """
    english, found = verses(data, "English"), []
    learned = {text for verse, text in english.items() if part_of(verse) == "train"}
    for verse, text in verses(data, language).items():
        if part_of(verse) != part or verse not in english:
            continue
        if part != "train" and english[verse] in learned:
            continue
        pair = Pair(text, english[verse])
        if pair.longer <= longest:
            found.append(pair)
    if not found:
        raise ValueError(f"language {language!r}: no verse has at most {longest} bytes")
    return found


def with_gaps(data: Path, *, longest: int) -> list[Pair]:
    """English training verses, each behind itself with a fifth of its words left out.

    What is to be translated into is learned, and to look at the source. Which words are left out
    is a function of the verse's name.
    """
    found = []
    for verse, text in verses(data, "English").items():
        if part_of(verse) == "train" and len(text.encode()) <= longest:
            draw = random.Random(verse)
            left = " ".join(word for word in text.split() if draw.random() > 0.2)
            found.append(Pair(left or text, text))
    return found
