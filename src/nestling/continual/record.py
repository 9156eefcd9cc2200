"""What a run over a stream measured: the matrix of losses, the online curve, and what it cost.

R[i, j] = loss on test experience j after learning experience i;    R[0, :] before any learning
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nestling.continual import metrics as numbers
from nestling.continual.protocol import Cost

FORMAT = "nestling-record"
SCHEMA = 1
OF_THE_MATRIX = (
    "final_average",
    "average_incremental",
    "plasticity",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
)


@dataclass(frozen=True)
class Probe:
    """Losses in the middle of a phase.

    Attributes:
        seen: targets learned from until then.
        losses: one for each name of the record.
    """

    seen: int
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Record:
    """Everything that a run measured, whole or until it was stopped.

    Attributes:
        names: of the test experiences: the columns.
        phases: of the experiences learned one after the other: the rows but the first.
        R: one row before learning and one after each phase that is over.
        seen: targets learned from until each row.
        unit: of R, for people.
        online: loss of each batch before it was learned from, and how many targets it had.
        online_unit: of these losses.
        costs: after each row.
        seconds: spent learning, without measuring.
        probes: measurements between the rows, and the rows themselves, in the order of the stream.
        settings: whatever the caller wants to be known about the run.
        finished: whether the stream is over.

    >>> record = Record(
    ...     names=("a", "b"), phases=("a", "b"), R=((8.0, 8.0), (2.0, 6.5), (3.0, 2.5)),
    ...     unit="bits", online=((4.0, 1), (1.0, 2)), online_unit="nats", finished=True)
    >>> record.metrics()["forgetting"], record.metrics()["online_average"]
    (1.0, 2.0)
    >>> Record.from_json(record.to_json()) == record
    True
    """

    names: tuple[str, ...]
    phases: tuple[str, ...]
    R: tuple[tuple[float, ...], ...] = ()
    seen: tuple[int, ...] = ()
    unit: str = ""
    online: tuple[tuple[float, int], ...] = ()
    online_unit: str = ""
    costs: tuple[Cost, ...] = ()
    seconds: float = 0.0
    probes: tuple[Probe, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = False

    @property
    def square(self) -> bool:
        """Whether every phase is measured and has its own column, so that all metrics apply."""
        return self.phases == self.names and len(self.R) == len(self.names) + 1

    def metrics(self, *, joint: Sequence[float] | None = None) -> dict[str, float]:
        """Every number of :mod:`nestling.continual.metrics` that this record can give.

        Without a column for each phase, as in joint training, only the final average is one. What
        is not a single number of one run (``forgetting_by_domain``, ``savings``) is left out.

        Args:
            joint: losses of joint training, one for each name, for ``intransigence``.

        Raises:
            ValueError: if ``joint`` has not one loss for each name.
        """
        found: dict[str, float] = {}
        if self.square:
            found = {name: getattr(numbers, name)(self.R) for name in OF_THE_MATRIX}
            if joint is not None:
                found["intransigence"] = numbers.intransigence(self.R, joint)
        elif self.finished and self.R:
            found["final_average"] = sum(self.R[-1]) / len(self.R[-1])
        if self.online:
            losses, counts = zip(*self.online, strict=True)
            found["online_average"] = numbers.online_average(losses, counts)
        return found

    def to_json(self) -> str:
        """The record as JSON text; every number to the last bit."""
        return json.dumps({"format": FORMAT, "schema": SCHEMA, **asdict(self)}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: if it is something else, or of another version.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"record: not JSON: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise ValueError(f"record: expected 'format' {FORMAT!r}")
        schema = values.pop("schema", None)
        if schema != SCHEMA:
            raise ValueError(f"record: schema {schema!r}; this version reads {SCHEMA}")
        try:
            return cls(
                **{
                    **values,
                    "names": tuple(values["names"]),
                    "phases": tuple(values["phases"]),
                    "R": tuple(map(tuple, values["R"])),
                    "seen": tuple(values["seen"]),
                    "online": tuple((loss, count) for loss, count in values["online"]),
                    "costs": tuple(Cost(**cost) for cost in values["costs"]),
                    "probes": tuple(Probe(p["seen"], tuple(p["losses"])) for p in values["probes"]),
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"record: damaged: {error}") from error
