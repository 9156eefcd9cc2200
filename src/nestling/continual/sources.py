"""Experiences out of data: files of text, labelled rows, images split or permuted.

    domain-incremental: text_experiences        class- and task-incremental: class_groups, by_class
    images: split by class as any labelled data; permuted

Class- and task-incremental streams hold the same experiences. They differ in what the measurement
of :mod:`nestling.continual.scoring` restricts the scores to, never in what a learner is given.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from nestling.continual.protocol import Batch, Experience
from nestling.continual.stream import shuffled
from nestling.shapes import Tensor


def text_experience(name: str, ids: Tensor, *, length: int) -> Experience:
    """A row of ids cut into sequences that share no target: the rest at the end is left out.

    Args:
        name: of the domain.
        ids: ``(N,)``.
        length: tokens T of a sequence.

    Raises:
        ValueError: if ``ids`` is not one axis of integers, or shorter than one sequence.

    >>> text_experience("count", torch.arange(7), length=3).items.targets.tolist()
    [[1, 2, 3], [4, 5, 6]]
    """
    if ids.ndim != 1 or ids.is_floating_point():
        raise ValueError(f"ids: expected one axis of integers, got {tuple(ids.shape)} {ids.dtype}")
    if length < 1:
        raise ValueError(f"length: expected at least 1, got {length}")
    rows = (len(ids) - 1) // length
    if rows < 1:
        raise ValueError(
            f"experience {name!r}: {len(ids)} tokens are shorter than one sequence of {length} + 1"
        )
    used = ids[: rows * length + 1].long()
    return Experience(name, Batch(used[:-1].view(rows, length), used[1:].view(rows, length)))


def text_experiences(files: Sequence[str | Path], *, length: int) -> list[Experience]:
    """One experience for each file, its bytes the tokens, in the order given.

    Raises:
        ValueError: naming the file, if one is missing, empty, too short, or given twice (also
            under another name with the same content).
    """
    experiences: list[Experience] = []
    seen: dict[str, Path] = {}
    for file in map(Path, files):
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
        data = file.read_bytes()
        if not data:
            raise ValueError(f"{file}: expected text, got an empty file")
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            raise ValueError(f"{file}: duplicate file: the same content as {seen[digest]}")
        seen[digest] = file
        ids = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        experiences.append(text_experience(str(file), ids, length=length))
    return experiences


def class_groups(classes: int, sizes: Sequence[int], *, seed: int) -> list[tuple[int, ...]]:
    """Which classes come together, in an order drawn from ``seed``.

    Raises:
        ValueError: if a size is not positive or they do not add up to ``classes``.

    >>> class_groups(5, [2, 3], seed=0)
    [(1, 2), (3, 0, 4)]
    """
    if any(size < 1 for size in sizes) or sum(sizes) != classes:
        raise ValueError(f"sizes: expected positive ones of sum {classes}, got {list(sizes)}")
    order = iter(shuffled(classes, seed, 0, 1).tolist())
    return [tuple(next(order) for _ in range(size)) for size in sizes]


def by_class(
    inputs: Tensor, labels: Tensor, groups: Sequence[Sequence[int]], *, name: str = "classes"
) -> list[Experience]:
    """One experience for each group of classes. Call it for training and for test data alike.

    Args:
        inputs: ``(N, ...)``.
        labels: ``(N,)`` integers.
        groups: disjoint classes, as :func:`class_groups` gives them.
        name: experiences are called ``"{name} 1"`` and so on.

    Raises:
        ValueError: naming a label that no group has, or a class in two, or a group without items.
    """
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"labels: expected one axis of integers, got {tuple(labels.shape)} {labels.dtype}"
        )
    listed = [label for group in groups for label in group]
    if len(set(listed)) < len(listed):
        twice = next(label for label in listed if listed.count(label) > 1)
        raise ValueError(f"groups: class {twice} comes twice")
    unseen = sorted(set(labels.tolist()) - set(listed))
    if unseen:
        raise ValueError(f"labels: unseen label {unseen[0]}, which is in no group of classes")
    items = Batch(inputs, labels.long())
    return [
        Experience(
            f"{name} {index}",
            items.rows(torch.isin(labels, torch.tensor(list(group), device=labels.device))),
            tuple(group),
        )
        for index, group in enumerate(groups, start=1)
    ]


def permuted(inputs: Tensor, labels: Tensor, *, tasks: int, seed: int) -> list[Experience]:
    """The same images with their pixels in another order for each task; the first one untouched.

    Args:
        inputs: ``(N, ...)``; all axes but the first are pixels, and come back as one axis.
        labels: ``(N,)``, the same classes in every task.
        tasks: how many.
        seed: of the permutations; use the same for training and test.

    Raises:
        ValueError: if there is not at least one task.
    """
    if tasks < 1:
        raise ValueError(f"tasks: expected at least 1, got {tasks}")
    flat = inputs.flatten(1)
    orders = [torch.arange(flat.shape[1])]
    orders += [shuffled(flat.shape[1], seed, task, 2) for task in range(1, tasks)]
    return [
        Experience(f"permutation {task}", Batch(flat[:, order.to(flat.device)], labels.long()))
        for task, order in enumerate(orders)
    ]


def read_labelled(
    file: str | Path, *, text: str = "text", label: str = "label"
) -> tuple[list[str], list[str]]:
    """Texts and the names of their labels out of a ``.csv``, ``.tsv`` or ``.jsonl`` file.

    Raises:
        ValueError: naming the file, and the line or the column that is missing.
    """
    file = Path(file)
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    texts, labels = [], []
    with file.open(encoding="utf-8-sig", newline="") as handle:
        if file.suffix.lower() in (".jsonl", ".ndjson"):
            rows = ((n, _object(file, n, line)) for n, line in enumerate(handle, 1) if line.strip())
        else:
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
            rows = enumerate(csv.DictReader(handle, delimiter=delimiter), start=2)
        for number, row in rows:
            for column, into in ((text, texts), (label, labels)):
                if row.get(column) is None:
                    has = sorted(map(str, row))
                    raise ValueError(f"{file}:{number}: missing column {column!r}; it has {has}")
                into.append(str(row[column]))
    if not texts:
        raise ValueError(f"{file}: expected labelled rows, got none")
    return texts, labels


def _object(file: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{number}: not JSON: {error.msg}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{file}:{number}: expected an object, got {type(row).__name__}")
    return row


def label_ids(labels: Sequence[str], names: Mapping[str, int]) -> Tensor:
    """Numbers of named labels; ``names`` is made from the training data.

    Raises:
        ValueError: naming the first label that is not in ``names``.

    >>> label_ids(["b", "a"], {"a": 0, "b": 1}).tolist()
    [1, 0]
    """
    for label in labels:
        if label not in names:
            raise ValueError(f"labels: unseen label {label!r}; known are {len(names)} others")
    return torch.tensor([names[label] for label in labels])
