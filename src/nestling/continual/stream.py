"""Streams of experiences: one after the other, every item once a pass, resumable anywhere.

    batch n of pass p of experience i  =  items[ order(seed, i, p)[n B : (n + 1) B] ]

The order is drawn by counter (Philox of seed, experience and pass), so the whole position, random
numbers included, is a :class:`Cursor` of three integers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from nestling.continual.protocol import Batch, Experience
from nestling.shapes import Tensor


@dataclass(frozen=True)
class Cursor:
    """Where a stream stands: experience, pass through it, and items of that pass already given."""

    experience: int = 0
    passed: int = 0
    position: int = 0


@dataclass(frozen=True)
class Moment:
    """A batch, and what the *run* knows about it; a learner gets the batch only.

    Attributes:
        batch: to observe.
        experience: index of where it comes from.
        last: it is the last of its experience.
    """

    batch: Batch
    experience: int
    last: bool


class Stream:
    """Experiences in the order given, each ``passes`` times, in batches.

    Args:
        experiences: with different names.
        batch: items of a batch; the last of a pass may be smaller.
        seed: of the order inside an experience.
        passes: through each experience before the next.
        boundaries: whether a learner is told when an experience ends.

    Raises:
        ValueError: if there is no experience, a name comes twice, two experiences introduce one
            class, or a number is out of range.

    >>> items = Batch(torch.arange(3), torch.arange(3))
    >>> stream = Stream([Experience("one", items)], batch=2, seed=1)
    >>> [moment.batch.inputs.tolist() for moment in stream], stream.cursor
    ([[2, 0], [1]], Cursor(experience=1, passed=0, position=0))
    """

    def __init__(
        self,
        experiences: Sequence[Experience],
        *,
        batch: int,
        seed: int = 0,
        passes: int = 1,
        boundaries: bool = True,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("passes", passes, 1), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not experiences:
            raise ValueError("experiences: expected at least one, got none")
        names = [experience.name for experience in experiences]
        introduced: dict[int, str] = {}
        for index, experience in enumerate(experiences):
            if experience.name in names[:index]:
                raise ValueError(
                    f"experiences: expected different names, got {experience.name!r} twice"
                )
            for label in experience.classes or ():
                if label in introduced:
                    raise ValueError(
                        f"experience {experience.name!r}: class {label} was introduced by "
                        f"{introduced[label]!r} already"
                    )
                introduced[label] = experience.name
        self.experiences = tuple(experiences)
        self.batch, self.seed, self.passes, self.boundaries = batch, seed, passes, boundaries
        self.cursor = Cursor()
        self._drawn: tuple[tuple[int, int], Tensor] | None = None

    def __iter__(self) -> Iterator[Moment]:
        while not self.over:
            yield self.next()

    @property
    def over(self) -> bool:
        """Whether everything was given."""
        return self.cursor.experience >= len(self.experiences)

    def next(self) -> Moment:
        """The next batch.

        Raises:
            ValueError: if the stream is over.
        """
        if self.over:
            raise ValueError("stream: it is over; there is no next batch")
        at = self.cursor
        items = self.experiences[at.experience].items
        chosen = self._order(at)[at.position : at.position + self.batch]
        position, passed, experience = at.position + len(chosen), at.passed, at.experience
        if position == len(items):
            position, passed = 0, passed + 1
        if passed == self.passes:
            passed, experience = 0, experience + 1
        self.cursor = Cursor(experience, passed, position)
        return Moment(items.rows(chosen), at.experience, last=experience > at.experience)

    def seek(self, cursor: Cursor) -> None:
        """Go on from a cursor of this stream, as if it had never stopped.

        Raises:
            ValueError: if there is no such place.
        """
        end = cursor == Cursor(len(self.experiences))
        if not end and not (
            0 <= cursor.experience < len(self.experiences)
            and 0 <= cursor.passed < self.passes
            and 0 <= cursor.position < len(self.experiences[cursor.experience].items)
        ):
            raise ValueError(f"cursor: this stream has no place {cursor}")
        self.cursor = cursor

    def fingerprint(self) -> str:
        """Digest of the items, their order and the batches: does a saved cursor belong here?"""
        digest = hashlib.sha256(
            repr((self.batch, self.seed, self.passes, self.boundaries)).encode()
        )
        for experience in self.experiences:
            digest.update(repr((experience.name, experience.classes)).encode())
            for tensor in (experience.items.inputs, experience.items.targets):
                digest.update(repr((tuple(tensor.shape), str(tensor.dtype))).encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _order(self, at: Cursor) -> Tensor:
        key = (at.experience, at.passed)
        if self._drawn is None or self._drawn[0] != key:
            size = len(self.experiences[at.experience].items)
            self._drawn = (key, shuffled(size, self.seed, *key))
        return self._drawn[1]


def shuffled(size: int, seed: int, *counter: int) -> Tensor:
    """A permutation of ``range(size)`` that is a function of seed and counter only.

    >>> shuffled(5, 0, 1).tolist() == shuffled(5, 0, 1).tolist() != shuffled(5, 0, 2).tolist()
    True
    """
    # Raw bits: NumPy does not promise to keep the algorithm of Generator.permutation. Counters
    # stand in the upper words, so that no two of them ever draw from the same stretch.
    words = [0, *counter, 0, 0, 0][:4]
    bits = np.random.Philox(key=seed, counter=words).random_raw(size)
    return torch.from_numpy(np.argsort(np.atleast_1d(bits), kind="stable"))


def together(experiences: Sequence[Experience], *, name: str = "joint") -> Experience:
    """All experiences as one: joint training is a stream of this and nothing else.

    Raises:
        ValueError: if there is none.
    """
    if not experiences:
        raise ValueError("experiences: expected at least one, got none")
    items = Batch(
        torch.cat([experience.items.inputs for experience in experiences]),
        torch.cat([experience.items.targets for experience in experiences]),
    )
    known = [experience.classes for experience in experiences]
    classes = None if None in known else tuple(c for one in known for c in one or ())
    return Experience(name, items, classes)
