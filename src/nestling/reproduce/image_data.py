"""Streams of handwritten digits: classes that come in pairs, and pixels that change their places.

    split        0 1 | 2 3 | 4 5 | 6 7 | 8 9       the answer is one of ten digits
    by task      the same, and each image tells which two digits it may show
    by domain    the same, and the answer is whether it is the first or the second of the two
    permuted     all digits again and again, with the pixels of each task in another order

Seed 0 is the order of the literature; others are drawn. What is chosen is chosen on the last sixth
of the training images, which is then not learned, with another order of the classes.
"""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from nestling.continual.protocol import Batch, Experience
from nestling.continual.sources import by_class, class_groups, permuted
from nestling.reproduce.job import Size
from nestling.shapes import Tensor

Kind = Literal["split", "by task", "by domain", "permuted"]
CLASSES, PAIRS = 10, 5
LEARNED = {"smoke": 400, "cpu": 60_000, "validation": 50_000}
MEASURED = {"smoke": 200, "cpu": 10_000, "validation": 10_000}
PERMUTATIONS = {"smoke": 3, "cpu": 20, "validation": 10}
AGAIN = 2_000  # images that are measured of each permutation: there are many, and many times
UNSIGNED_BYTES = 0x08


@dataclass(frozen=True)
class Images:
    """A stream's experiences to learn and those to measure on, in the same order."""

    train: list[Experience]
    test: list[Experience]


def read_idx(file: Path) -> Tensor:
    """The array in a file ``*-ubyte.gz`` of the MNIST format, as bytes.

        0, 0, type, axes,   the size of each axis as four bytes,   the numbers

    Raises:
        ValueError: naming the file, if it is missing, damaged, or holds something else.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        data = gzip.decompress(file.read_bytes())
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{file}: not a whole gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0":
        raise ValueError(f"{file}: expected an idx file, which begins with two zero bytes")
    kind, axes = data[2], data[3]
    if kind != UNSIGNED_BYTES:
        raise ValueError(f"{file}: expected numbers of type 0x08 (bytes), got {kind:#04x}")
    begin = 4 + 4 * axes
    if len(data) < begin:
        raise ValueError(f"{file}: ends before the sizes of its {axes} axes")
    shape = struct.unpack(f">{axes}I", data[4:begin])
    if len(data) - begin != math.prod(shape):
        raise ValueError(
            f"{file}: expected {math.prod(shape)} numbers for shape {shape}, "
            f"got {len(data) - begin}"
        )
    return torch.frombuffer(bytearray(data[begin:]), dtype=torch.uint8).view(shape)


def digits(data: Path, part: Literal["train", "t10k"]) -> Batch:
    """Images ``(N, pixels)`` as bytes, and the digits they show.

    Raises:
        ValueError: naming a file that cannot be read, or that does not belong to the other.
    """
    folder = data / "mnist"
    images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"{folder}: {part}: expected as many labels as images, got shapes "
            f"{tuple(images.shape)} and {tuple(labels.shape)}"
        )
    return Batch(images.flatten(1), labels.long())


def images(data: Path, kind: Kind, *, size: Size, seed: int) -> Images:
    """Read a stream.

    Args:
        data: folder with ``mnist`` in it.
        kind: see the module.
        size: how much of it; ``validation`` shares no image with what ``cpu`` measures.
        seed: of the classes' order, or of the permutations.

    Raises:
        ValueError: naming what cannot be read.
    """
    train = digits(data, "train")
    test = digits(data, "t10k") if size != "validation" else train.rows(slice(50_000, None))
    train = train.rows(slice(0, LEARNED[size]))
    test = test.rows(slice(0, MEASURED[size]))
    if kind == "permuted":
        few, tasks = test.rows(slice(0, AGAIN)), PERMUTATIONS[size]
        return Images(
            permuted(train.inputs, train.targets, tasks=tasks, seed=seed),
            permuted(few.inputs, few.targets, tasks=tasks, seed=seed),
        )
    groups = pairs(seed + 100 if size == "validation" else seed)
    both = [by_class(part.inputs, part.targets, groups, name="digits") for part in (train, test)]
    change = {"split": _unchanged, "by task": with_classes, "by domain": which_of_two}[kind]
    learned, measured = ([change(_named(one)) for one in part] for part in both)
    return Images(learned, measured)


def pairs(seed: int) -> list[tuple[int, ...]]:
    """Which digits come together.

    >>> pairs(0), len(pairs(1))
    ([(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)], 5)
    """
    if seed == 0:
        return [(first, first + 1) for first in range(0, CLASSES, 2)]
    return class_groups(CLASSES, [CLASSES // PAIRS] * PAIRS, seed=seed)


def with_classes(experience: Experience) -> Experience:
    """The same with ten more numbers behind each image: 1 for each class it may be of."""
    items, classes = experience.items, _classes(experience)
    marks = torch.zeros(len(items), CLASSES, dtype=items.inputs.dtype)
    marks[:, list(classes)] = 1
    return Experience(
        experience.name, Batch(torch.cat([items.inputs, marks], 1), items.targets), classes
    )


def which_of_two(experience: Experience) -> Experience:
    """The same images, to be told whether they are of the first or of the second class."""
    items, classes = experience.items, _classes(experience)
    return Experience(experience.name, Batch(items.inputs, (items.targets == classes[1]).long()))


def _named(experience: Experience) -> Experience:
    name = " ".join(map(str, _classes(experience)))
    return Experience(name, experience.items, experience.classes)


def _unchanged(experience: Experience) -> Experience:
    return experience


def _classes(experience: Experience) -> tuple[int, ...]:
    assert experience.classes is not None
    return experience.classes
