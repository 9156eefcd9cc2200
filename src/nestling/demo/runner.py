"""The demo: Hope with a slow level and a plain Transformer++ learn one text after the other.

    for domain i, for each model:   learn domain i;   R[i, j] = bits per byte on domain j, all j

Both models have the same number of parameters, see the same batches in the same order, and are
moved by the same optimizer with the same rate. Hope's slow level dreams besides
(:mod:`nestling.levels.consolidation`). Every number goes to ``results.jsonl`` as it comes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nestling.data import TextStream
from nestling.demo.budget import DEFAULT, SEED_SPREAD, DemoBudget
from nestling.demo.learner import Learner, build_learners
from nestling.demo.measure import byte_ids, losses, mean, reading, sequences, written
from nestling.demo.progress import Progress
from nestling.demo.texts import Domain, shipped, split
from nestling.report import Measurement, Results, ResultsWriter, read_results, write_report
from nestling.report.machine import describe_machine
from nestling.shapes import Tensor
from nestling.storage.lock import lock

RESULTS, REPORT = "results.jsonl", "report.html"


@dataclass(frozen=True)
class HeldOut:
    """What one domain is measured on; ``probe`` picks rows of ``rows`` for the curves."""

    name: str
    rows: Tensor
    probe: Tensor
    passages: Tensor


def run_demo(
    texts: Sequence[tuple[str, str]] | None = None,
    *,
    out: Path,
    budget: DemoBudget = DEFAULT,
    seed: int = 0,
    progress: Progress | None = None,
) -> Results:
    """Run the demo and write ``results.jsonl`` and ``report.html`` into ``out``.

    A run that is stopped leaves all it measured, and a report of that.

    Args:
        texts: name and text of each domain, in the order to learn them; None for those shipped.
        out: directory, made if missing. An older results file in it is kept under another name.
        budget: all sizes and steps.
        seed: of the weights and of the order of the batches.
        progress: where to show how far it is; None shows nothing.

    Returns:
        What was written to ``results.jsonl``.

    Raises:
        ValueError: if a text is too short or two have one name, naming it; or if another process
            is writing to ``out``, or it cannot be made.
        NonFiniteError: if a model diverges; the report shows everything until then.
    """
    domains = _domains(shipped() if texts is None else texts, budget)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: cannot make the directory {out}: {error.strerror}") from error
    began = time.perf_counter()
    progress = progress or Progress.silent()
    with lock(out), _threads(budget.threads):
        learners = build_learners(budget, seed=seed)
        run = _describe(domains, learners, budget, seed)
        with ResultsWriter(out / RESULTS, run) as writer:
            try:
                for learner in learners:
                    writer.add(*learner.level_table())
                with progress:
                    _Run(domains, learners, budget, seed, writer, progress).all()
                writer.finish(time.perf_counter() - began)
            finally:
                results = read_results(out / RESULTS)
                write_report(results, out / REPORT)
    return results


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """That many threads of torch, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    """The phases of one run."""

    def __init__(
        self,
        domains: Sequence[Domain],
        learners: Sequence[Learner],
        budget: DemoBudget,
        seed: int,
        writer: ResultsWriter,
        progress: Progress,
    ) -> None:
        self.domains, self.learners, self.budget, self.seed = domains, learners, budget, seed
        self.writer, self.progress = writer, progress
        self.held_out = [_held_out(domain, budget) for domain in domains]

    def all(self) -> None:
        """Measure, then learn and measure each domain, then read long passages."""
        budget = self.budget
        self.progress.expect(
            {learner.name: budget.steps * len(self.domains) for learner in self.learners}
        )
        for learner in self.learners:
            with self.progress.measuring(learner.name, learner.title, "before training"):
                self._measure(learner, phase=0)
        for phase, domain in enumerate(self.domains, start=1):
            for learner in self.learners:
                self._learn(learner, domain, phase)
        for learner in self.learners:
            with self.progress.measuring(learner.name, learner.title, "reading long passages"):
                self._read(learner)

    def _learn(self, learner: Learner, domain: Domain, phase: int) -> None:
        budget = self.budget
        stream = TextStream(
            byte_ids(domain.train), batch=budget.batch, length=budget.length, seed=self.seed
        )
        learner.remember_weights()
        updates: dict[str, int] = {}
        stops = {round(i * budget.steps / (budget.probes + 1)) for i in range(1, budget.probes + 1)}
        for index, step in enumerate(learner.learn(stream, budget.steps), start=1):
            self._add(learner, phase, "train_bpb", step.loss, domain=domain.name)
            self._add(learner, phase, "gradient_norm", step.norm)
            for level in step.moved:
                updates[str(level.period)] = updates.get(str(level.period), 0) + 1
            self.progress.step(learner.name, learner.title, domain.name, step.loss)
            if index in stops and index < budget.steps:
                with self.progress.measuring(learner.name, learner.title, "all domains"):
                    self._probe(learner, phase)
        with self.progress.measuring(learner.name, learner.title, "all domains"):
            for period, count in updates.items():
                self._add(learner, phase, "level_updates", float(count), part=period)
            for part, change in learner.change_by_part().items():
                self._add(learner, phase, "weights_written", change, part=part)
            rows = self.held_out[phase - 1].rows
            for memory, share in written(learner.answers, rows).items():
                self._add(learner, phase, "memory_written", share, part=memory, domain=domain.name)
            row = self._measure(learner, phase)
        self.progress.say(
            f"{learner.title} has learned {domain.name}: {row[phase - 1]:.2f} bits per byte there, "
            f"{sum(row) / len(row):.2f} on average over all domains"
        )

    def _measure(self, learner: Learner, phase: int) -> list[float]:
        """One row of the matrix, and its part of the curves."""
        row = []
        for held in self.held_out:
            each = losses(learner.answers, held.rows)
            whole, probe = mean(each), mean(each[held.probe])
            row.append(whole.value)
            self._add(
                learner, phase, "held_out_bpb", whole.value, error=whole.error, domain=held.name
            )
            self._add(learner, phase, "probe_bpb", probe.value, domain=held.name)
        return row

    def _probe(self, learner: Learner, phase: int) -> None:
        for held in self.held_out:
            probe = mean(losses(learner.answers, held.rows[held.probe]))
            self._add(learner, phase, "probe_bpb", probe.value, domain=held.name)

    def _read(self, learner: Learner) -> None:
        for held in self.held_out:
            pieces = reading(learner.answers, held.passages, length=self.budget.length)
            for index, piece in enumerate(pieces):
                self._add(
                    learner, len(self.domains), "reading_bpb", piece.value, error=piece.error,
                    domain=held.name, part=str(index * self.budget.length),
                )  # fmt: skip

    def _add(
        self,
        learner: Learner,
        phase: int,
        metric: str,
        value: float,
        *,
        domain: str | None = None,
        part: str | None = None,
        error: float | None = None,
    ) -> None:
        self.writer.add(
            Measurement(
                model=learner.name, metric=metric, value=value, phase=phase, step=learner.step,
                tokens=learner.tokens, domain=domain, part=part, error=error,
                seconds=round(learner.seconds, 2), seed=self.seed,
            )
        )  # fmt: skip


def _domains(texts: Sequence[tuple[str, str]], budget: DemoBudget) -> list[Domain]:
    names = [name for name, _ in texts]
    if not texts:
        raise ValueError("texts: expected at least one, got none")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"texts: expected different names, got {twice!r} twice")
    return [
        split(name, text, held_out_bytes=budget.held_out, least_train_bytes=budget.length + 1)
        for name, text in texts
    ]


def _held_out(domain: Domain, budget: DemoBudget) -> HeldOut:
    rows = sequences(domain.held_out, length=budget.length, most=budget.measured)
    probes = min(len(rows), budget.probed // budget.length)
    probe = torch.arange(probes) * (len(rows) - 1) // max(probes - 1, 1)
    # A short text gives shorter passages, but always whole pieces.
    whole = (len(domain.held_out) - 1) // budget.length * budget.length
    length = min(budget.reading, whole)
    passages = sequences(domain.held_out, length=length, most=budget.passages * length)
    return HeldOut(domain.name, rows, probe, passages)


def _describe(
    domains: Sequence[Domain], learners: Sequence[Learner], budget: DemoBudget, seed: int
) -> dict[str, object]:
    """The first line of the results: all that is needed to understand and to repeat the run."""
    return {
        "domains": [
            {
                "name": domain.name,
                "title": domain.title,
                "train_bytes": len(domain.train),
                "held_out_bytes": len(domain.held_out),
            }
            for domain in domains
        ],
        "models": [
            {
                "name": learner.name,
                "title": learner.title,
                "parameters": sum(p.numel() for p in learner.model.parameters()),
                "config": learner.model.config.to_dict(),
            }
            for learner in learners
        ],
        "budget": dataclasses.asdict(budget),
        "seed_spread": SEED_SPREAD,
        "seed": seed,
        **describe_machine(),
    }
