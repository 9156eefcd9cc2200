"""A learner on a stream: learn, measure after every experience, go on after a kill.

    for batch in stream:  learner.observe(batch)              learner.end_experience(items) only
    after experience i:   R[i, j] = score(learner, test j)    where the stream tells its boundaries

The learner is given batches and nothing else; which experience they are of, and the test data, stay
on this side. With a folder, everything that goes on is saved as checkpoints of
:mod:`nestling.storage`, and the same call in another process goes on from the newest, to the bit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from nestling.continual.protocol import Cost, Experience, Learner, Scorer
from nestling.continual.record import Probe, Record
from nestling.continual.scoring import error_rate
from nestling.continual.stream import Cursor, Stream
from nestling.shapes import Tensor
from nestling.storage import Checkpoint, CheckpointError, latest, read, write
from nestling.storage.durable import replace, sweep
from nestling.storage.lock import lock
from nestling.storage.packing import pack
from nestling.storage.weights import random_state, set_random_state

RECORD = "record.json"
UNITS = {"error_rate": "error rate", "error_rate_within_task": "error rate",
         "bits_per_target": "bits per target"}  # fmt: skip


@dataclass(frozen=True)
class Probes:
    """Measurements in the middle of a phase, for curves.

    Attributes:
        every: batches between two.
        on: experiences to measure on, as many as there are for testing and usually smaller;
            ``None``: the same.
    """

    every: int
    on: Sequence[Experience] | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is; given to ``on_progress`` after every batch and every row.

    Attributes:
        batches, total: learned from, and of the whole stream.
        phase, name: index and name of the experience it is in, or has just ended.
        loss: of the last batch before it was learned from; ``None`` before the first.
        row: the losses just measured, if this is after a row.
    """

    batches: int
    total: int
    phase: int
    name: str
    loss: float | None
    row: tuple[float, ...] | None = None


def run(
    learner: Learner,
    stream: Stream,
    test: Sequence[Experience],
    *,
    score: Scorer = error_rate,
    online: Literal["nats", "bits"] | Scorer = "nats",
    probes: Probes | None = None,
    folder: str | Path | None = None,
    every: int = 200,
    settings: Mapping[str, Any] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Record:
    """Let a learner learn a whole stream, and measure what it keeps.

    Args:
        learner: changed in place.
        stream: at its beginning.
        test: what is measured, never learned; as many as the stream has experiences and of the
            same names, or another number, as for joint training (then most metrics do not apply).
        score: of a learner on an experience; lower is better.
        online: the unit of what ``observe`` returns, or a score to take of each batch before it is
            learned from (one more forward pass).
        probes: measurements inside the phases.
        folder: where checkpoints and ``record.json`` go; a folder with a part of this run goes on.
        every: batches between two checkpoints; there is one after each row besides.
        settings: plain values to keep with the record; a folder with others is refused.
        on_progress: called after every batch and row.
        stop: asked after every batch; once it says yes, all is saved and what there is returned.

    Raises:
        ValueError: if an argument does not fit, the folder belongs to another stream, learner or
            setting (naming what differs) or is in use, or a measured loss is not finite.

    >>> from nestling.continual.protocol import Batch
    >>> from nestling.continual.strategies import Sequential
    >>> items = Batch(torch.eye(4), torch.arange(4) % 2)
    >>> learner = Sequential(torch.nn.Linear(4, 2))
    >>> record = run(learner, Stream([Experience("a", items)], batch=2), [Experience("a", items)])
    >>> len(record.R), record.costs[-1].backward, record.finished
    (2, 4, True)
    """
    _check(stream, test, probes, every)
    job = _Job(learner, stream, tuple(test), score, online, probes, dict(settings or {}))
    with _saving(job, None if folder is None else Path(folder)) as save:
        return job.go(save, every=every, on_progress=on_progress, stop=stop)


@dataclass
class _Job:
    learner: Learner
    stream: Stream
    test: tuple[Experience, ...]
    score: Scorer
    online: Literal["nats", "bits"] | Scorer
    probes: Probes | None
    settings: dict[str, Any]
    batches: int = 0
    seconds: float = 0.0
    rows: list[tuple[float, ...]] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    curve: list[tuple[float, int]] = field(default_factory=list)
    probed: list[Probe] = field(default_factory=list)

    def go(
        self,
        save: Callable[[], None],
        *,
        every: int,
        on_progress: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
    ) -> Record:
        def tell(phase: int, row: tuple[float, ...] | None = None) -> None:
            if on_progress is not None:
                name = self.stream.experiences[phase].name
                loss = self.curve[-1][0] if self.curve else None
                on_progress(Progress(batches=self.batches, total=total_batches(self.stream),
                                     phase=phase, name=name, loss=loss, row=row))  # fmt: skip

        if not self.rows:
            self._measure("before learning")
            save()
            tell(0, self.rows[-1])
        while not self.stream.over:
            phase, last = self._learn()
            tell(phase)
            if last:
                self._measure(f"after {self.stream.experiences[phase].name!r}")
            elif self.probes is not None and self.batches % self.probes.every == 0:
                self._probe(self.probes.on)
            stopped = stop is not None and stop()
            if last or stopped or self.batches % every == 0:
                save()
            if last:
                tell(phase, self.rows[-1])
            if stopped:
                break
        return self.record()

    def record(self) -> Record:
        unit = _name(self.score)
        online = self.online if isinstance(self.online, str) else _name(self.online)
        return Record(
            names=tuple(experience.name for experience in self.test),
            phases=tuple(experience.name for experience in self.stream.experiences),
            R=tuple(self.rows),
            seen=tuple(self.seen),
            unit=UNITS.get(unit, unit),
            online=tuple(self.curve),
            online_unit=UNITS.get(online, online),
            costs=tuple(self.costs),
            seconds=self.seconds,
            probes=tuple(self.probed),
            settings=self.settings,
            finished=self.stream.over,
        )

    def _learn(self) -> tuple[int, bool]:
        """One batch; of which experience it was, and whether it was its last."""
        moment = self.stream.next()
        before = None
        if not isinstance(self.online, str):
            before = self.online(self.learner, Experience("the next batch", moment.batch))
        began = time.perf_counter()
        loss = self.learner.observe(moment.batch)
        if moment.last and self.stream.boundaries:
            self.learner.end_experience(self.stream.experiences[moment.experience].items)
        self.seconds += time.perf_counter() - began
        if before is None:
            before = loss / math.log(2) if self.online == "bits" else loss
        self.curve.append((float(before), moment.batch.count))
        self.batches += 1
        return moment.experience, moment.last

    def _measure(self, when: str) -> None:
        row = tuple(float(self.score(self.learner, experience)) for experience in self.test)
        for experience, value in zip(self.test, row, strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"score: {when}, the loss on {experience.name!r} is {value}; "
                    "the learner has diverged (a smaller step size?)"
                )
        self.rows.append(row)
        self.seen.append(sum(count for _, count in self.curve))
        self.costs.append(self.learner.cost)
        # The rows stand in the curve too, on the same sample as the other probes.
        self._probe(None if self.probes is None else self.probes.on, row)

    def _probe(
        self, on: Sequence[Experience] | None, known: tuple[float, ...] | None = None
    ) -> None:
        if on is not None or known is None:
            on = self.test if on is None else on
            known = tuple(float(self.score(self.learner, experience)) for experience in on)
        self.probed.append(Probe(sum(count for _, count in self.curve), known))

    def identity(self) -> dict[str, Any]:
        """What must be the same for a folder to go on, by name."""
        stream, score = self.stream, self.score
        online = self.online if isinstance(self.online, str) else _name(self.online)
        found = {
            "stream": {
                "names": [experience.name for experience in stream.experiences],
                "items": [len(experience.items) for experience in stream.experiences],
                "batch": stream.batch,
                "seed": stream.seed,
                "passes": stream.passes,
                "boundaries": stream.boundaries,
                "content": stream.fingerprint(),
            },
            "test": {
                "names": [experience.name for experience in self.test],
                "content": [Stream([one], batch=1).fingerprint() for one in self.test],
            },
            "learner": {"kind": type(self.learner).__name__, "state": outline(self.learner)},
            "score": _name(score),
            "online": online,
            "probes": None if self.probes is None else self.probes.every,
            "settings": self.settings,
        }
        return json.loads(json.dumps(found))

    def save(self, folder: Path, identity: Mapping[str, Any]) -> None:
        losses, counts = zip(*self.curve, strict=True) if self.curve else ((), ())
        state = {
            "learner": dict(self.learner.state()),
            "cursor": asdict(self.stream.cursor),
            "rows": self.rows,
            "seen": self.seen,
            "costs": [asdict(cost) for cost in self.costs],
            "losses": torch.tensor(losses, dtype=torch.float64),
            "counts": torch.tensor(counts, dtype=torch.int64),
            "probes": [[probe.seen, list(probe.losses)] for probe in self.probed],
            "seconds": self.seconds,
            "random": random_state(),
        }
        checkpoint = Checkpoint(
            step=self.batches,
            tokens=sum(counts),
            config={"run": dict(identity)},
            model={},
            state=state,
        )
        write(folder, checkpoint, keep=2)
        replace(folder / RECORD, self.record().to_json().encode())

    def load(self, saved: Checkpoint) -> None:
        state = saved.state
        try:
            self.learner.load_state(state["learner"])
        except RuntimeError as error:  # torch's word for weights of another shape
            raise ValueError(f"learner: {error}") from error
        self.stream.seek(Cursor(**state["cursor"]))
        self.batches, self.seconds = saved.step, state["seconds"]
        self.rows = [tuple(row) for row in state["rows"]]
        self.seen = list(state["seen"])
        self.costs = [Cost(**cost) for cost in state["costs"]]
        losses, counts = state["losses"].tolist(), state["counts"].tolist()
        self.curve = list(zip(losses, counts, strict=True))
        self.probed = [Probe(seen, tuple(losses)) for seen, losses in state["probes"]]
        set_random_state(state["random"])


@contextmanager
def _saving(job: _Job, folder: Path | None) -> Iterator[Callable[[], None]]:
    """How to save the job; what the folder holds of it already is loaded first."""
    if folder is None:
        yield lambda: None
        return
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"folder: {folder} is not a directory")
    folder.mkdir(parents=True, exist_ok=True)
    identity = job.identity()
    with lock(folder):
        sweep(folder)
        newest = latest(folder)
        if newest is not None:
            saved = read(newest)
            if "run" not in saved.config:
                raise CheckpointError(f"{newest}: a checkpoint, but not of a run over a stream")
            found = differences(saved.config["run"], identity)
            if found:
                raise ValueError(
                    f"folder: {folder} holds another run: {'; '.join(found)}; "
                    "choose another folder, or the same values"
                )
            job.load(saved)
        yield lambda: job.save(folder, identity)


def total_batches(stream: Stream) -> int:
    """Batches of a whole stream."""
    sizes = (len(experience.items) for experience in stream.experiences)
    return stream.passes * sum(-(-size // stream.batch) for size in sizes)


def outline(learner: Learner) -> dict[str, Any] | None:
    """A learner that has learned nothing yet, without its numbers: shapes and plain values.

    ``None`` for one that has: what it holds beside its weights then says nothing about how it was
    made.
    """
    if learner.cost.forward:
        return None
    tensors: dict[str, Tensor] = {}
    plain = pack(dict(learner.state()), tensors)
    shapes = {name: f"{tuple(t.shape)} {t.dtype}" for name, t in tensors.items()}
    return {"values": plain, "tensors": shapes}


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What differs between two nested plain values, at most four of them, by name.

    >>> differences({"stream": {"batch": 4, "seed": 0}}, {"stream": {"batch": 8, "seed": 0}})
    ['stream.batch is 8, it was 4']
    """
    unknown = name == "learner.state" and (old is None or new is None)
    if repr(old) == repr(new) or unknown:  # words, because a NaN does not equal itself
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        dotted = (f"{name}.{key}" if name else str(key) for key in keys)
        found = [
            difference
            for key, path in zip(keys, dotted, strict=True)
            for difference in differences(old.get(key), new.get(key), path)
        ]
        return found[:4]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{name}[{i}]")][:4]
    return [f"{name} is {_short(new)}, it was {_short(old)}"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _check(stream: Stream, test: Sequence[Experience], probes: Probes | None, every: int) -> None:
    if every < 1:
        raise ValueError(f"every: expected at least 1, got {every}")
    if not test:
        raise ValueError("test: expected at least one experience, got none")
    if stream.cursor != Cursor():
        raise ValueError(f"stream: expected it at its beginning, it stands at {stream.cursor}")
    learned = [experience.name for experience in stream.experiences]
    measured = [experience.name for experience in test]
    if len(learned) == len(measured) and learned != measured:
        wrong = next(i for i, name in enumerate(learned) if measured[i] != name)
        raise ValueError(
            f"test: expected {learned[wrong]!r} at place {wrong + 1}, as in the stream, "
            f"got {measured[wrong]!r}"
        )
    if probes is not None:
        if probes.every < 1:
            raise ValueError(f"probes: expected every >= 1, got {probes.every}")
        if probes.on is not None and len(probes.on) != len(test):
            raise ValueError(f"probes: expected {len(test)} experiences, got {len(probes.on)}")
