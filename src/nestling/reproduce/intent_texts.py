"""Short texts and what they are about, in groups of classes that come one after the other.

    CLINC 10 x 15 intents,    Banking 7 x 11 intents,    DBpedia 7 x 10 kinds of things

What is chosen is chosen on a tenth of the training texts of each class, which are then not learned,
with another order of the classes; the test texts are used for nothing else.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.continual.sources import class_groups, label_ids
from nestling.continual.stream import shuffled
from nestling.reproduce.job import Size
from nestling.shapes import Tensor

FOLDER = "intent_cil"
GROUPS = {"clinc": (15,) * 10, "banking": (11,) * 7, "dbpedia": (10,) * 7}
"""How many classes come together."""

VALIDATION = 100
"""Added to the seed of the classes' order where settings are chosen."""

SMOKE = 12  # texts of each class, and a third of them to measure on


@dataclass(frozen=True, kw_only=True)
class Intents:
    """Labelled texts to learn and to measure on.

    Attributes:
        train, test: texts.
        learned, measured: their classes, ``(N,)``.
        sizes: of the groups in which the classes come.
        offset: added to a seed, for the order of the classes.
    """

    train: list[str]
    learned: Tensor
    test: list[str]
    measured: Tensor
    sizes: tuple[int, ...]
    offset: int

    @property
    def classes(self) -> int:
        """How many there are."""
        return sum(self.sizes)

    def groups(self, seed: int) -> list[tuple[int, ...]]:
        """Which classes come together, in the order of a seed."""
        return class_groups(self.classes, self.sizes, seed=seed + self.offset)


def intents(data: Path, name: str, size: Size) -> Intents:
    """Read one of the sets.

    Args:
        data: folder of the data sets.
        name: in ``GROUPS``.
        size: ``cpu`` measures on the test texts, ``validation`` on a tenth of the training texts;
            ``smoke`` is the latter with few texts of the first three groups.

    Raises:
        ValueError: if the name is unknown, a file is missing or no such file, or the number of
            classes is another.
    """
    if name not in GROUPS:
        raise ValueError(f"name: expected one of {list(GROUPS)}, got {name!r}")
    sizes = GROUPS[name]
    texts, labels = read_texts(data / FOLDER / f"{name}_train.csv.gz")
    known = {label: number for number, label in enumerate(sorted(set(labels)))}
    if len(known) != sum(sizes):
        raise ValueError(f"{name}: expected {sum(sizes)} classes, found {len(known)}")
    learned = label_ids(labels, known)
    if size == "cpu":
        test, names = read_texts(data / FOLDER / f"{name}_test.csv.gz")
        return Intents(
            train=texts, learned=learned, test=test, measured=label_ids(names, known),
            sizes=sizes, offset=0,
        )  # fmt: skip
    share = 0.1
    if size == "smoke":
        sizes, share = sizes[:3], 1 / 3
        chosen = _few(learned, sum(sizes))
        texts, learned = [texts[i] for i in chosen], learned[chosen]
    held = held_out(learned, share)
    return Intents(
        train=_where(texts, ~held), learned=learned[~held],
        test=_where(texts, held), measured=learned[held], sizes=sizes, offset=VALIDATION,
    )  # fmt: skip


def read_texts(file: Path) -> tuple[list[str], list[str]]:
    """Columns ``text`` and ``label`` of a packed table.

    Raises:
        ValueError: naming the file, if it is missing, damaged, or has no such columns.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        with gzip.open(file, "rt", encoding="utf8", newline="") as handle:
            rows = list(csv.DictReader(handle))
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{file}: not a whole gzip file: {error}") from error
    if not rows or not {"text", "label"} <= set(rows[0]):
        raise ValueError(f"{file}: expected rows with the columns text and label")
    return [row["text"] for row in rows], [row["label"] for row in rows]


def held_out(labels: Tensor, share: float) -> Tensor:
    """A share of each class, at least one item of it, drawn once and for all: ``(N,)`` booleans.

    >>> held_out(torch.tensor([0, 0, 1, 1]), 0.5).sum()
    tensor(2)
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        places = (labels == label).nonzero()[:, 0]
        order = shuffled(len(places), VALIDATION, label)
        held[places[order[: max(1, round(share * len(places)))]]] = True
    return held


def _few(labels: Tensor, classes: int) -> list[int]:
    """Places of the first texts of each of the first classes."""
    found = [(labels == label).nonzero()[:SMOKE, 0].tolist() for label in range(classes)]
    return [place for places in found for place in places]


def _where(texts: list[str], wanted: Tensor) -> list[str]:
    return [texts[place] for place in wanted.nonzero()[:, 0].tolist()]
