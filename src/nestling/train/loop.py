"""The training loop: steps, lines, measurements, checkpoints, and a clean end whatever happens.

    fresh or resumed -> step, step, ... -> (measure) -> (save) -> ... -> save

SIGTERM, SIGINT and SIGHUP finish the step, save and return. A NaN stops with the last good
checkpoint kept. A kill at any moment costs the steps since the last checkpoint and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from nestling.data import ByteTokenizer, TextStream, Tokenizer
from nestling.memory import flatten
from nestling.models import LanguageModel
from nestling.optim import NonFiniteError
from nestling.shapes import Tensor
from nestling.storage.checkpoint import Checkpoint, latest, read, write
from nestling.storage.durable import sweep
from nestling.storage.lock import lock
from nestling.train.config import TrainConfig
from nestling.train.metrics import MetricsFile
from nestling.train.progress import Reporter
from nestling.train.run import Run, Step
from nestling.train.signals import stop_signals


@dataclass(kw_only=True)
class Result:
    """How a call of :func:`train` went.

    Attributes:
        run: the run as it stands, with its model.
        history: the steps of this call.
        held_out: bits per byte on held-out text by step.
        stopped: name of the signal that ended it, or ``None``.
        checkpoint: the newest checkpoint, if there is a directory.
    """

    run: Run
    history: list[Step] = field(default_factory=list)
    held_out: dict[int, float] = field(default_factory=dict)
    stopped: str | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where a run writes and what it says.

    Attributes:
        directory: of checkpoints and metrics.jsonl; ``None`` writes nothing.
        resume: go on from the newest checkpoint there.
        source: plain JSON about the text, stored in every checkpoint.
        console: where lines go; ``None``: standard output.
        quiet: say nothing.
    """

    directory: Path | None = None
    resume: bool = False
    source: Mapping[str, Any] = field(default_factory=dict)
    console: Console | None = None
    quiet: bool = False


def train(
    config: TrainConfig,
    model: LanguageModel,
    stream: TextStream,
    *,
    tokenizer: Tokenizer | None = None,
    held_out: Tensor | None = None,
    output: Output | None = None,
    on_step: Callable[[Step], None] | None = None,
    memory_of: Run | None = None,
) -> Result:
    """Train ``model`` on ``stream``.

    Args:
        config: the run.
        model: trained in place, on its own device.
        stream: batches of the size that ``config`` names.
        tokenizer: of the text, for bits per byte; saved with every checkpoint. Bytes by default.
        held_out: ids to measure on.
        output: where to write; nothing is written by default.
        on_step: called after every step.
        memory_of: a run before this one, on other text, whose optimizer's memory is kept. Moments
            are memories of gradients: dropped at the end of a phase, what they know is lost
            (NL 4.5). ``None``: begin with empty ones.

    Raises:
        NonFiniteError: at a NaN, saying at which step, where, and what is kept.
        CheckpointError: if a checkpoint cannot be written or the one to resume from is not good.
        ValueError: if the directory holds another run, or is being written by another process.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1, hidden=16)
    >>> stream = TextStream(torch.arange(256).repeat(8), batch=4, length=32)
    >>> result = train(TrainConfig(steps=30, batch=4, length=32, lr=0.02), model, stream,
    ...                output=Output(quiet=True))
    >>> result.history[0].bits_per_byte > 7.5 > 7 > result.history[-1].bits_per_byte
    True
    """
    tokenizer, output = tokenizer or ByteTokenizer(), output or Output()
    sample = stream.ids[: 1 << 20]
    run = Run(model, stream, config, bytes_per_token=tokenizer.count_bytes(sample) / len(sample))
    with ExitStack() as stack:
        if output.directory is not None:
            _open(output.directory)
            stack.enter_context(lock(output.directory))
            sweep(output.directory)
        loop = _Loop(run, tokenizer, held_out, output, on_step)
        loop.start()
        if memory_of is not None and run.steps == 0:  # a resumed run has its own
            run.optimizer.load_state_dict(memory_of.optimizer.state_dict(), memories_only=True)
        with stop_signals(active=output.directory is not None) as received:
            loop.go(stack, received)
    return loop.result


class _Loop:
    """The parts of :func:`train` that share a run."""

    def __init__(
        self,
        run: Run,
        tokenizer: Tokenizer,
        held_out: Tensor | None,
        output: Output,
        on_step: Callable[[Step], None] | None,
    ) -> None:
        self.run, self.tokenizer, self.output, self.on_step = run, tokenizer, output, on_step
        self.held_out = held_out if held_out is not None and len(held_out) > 1 else None
        self.result = Result(run=run)
        self.saved_at = -1
        self.notices: list[str] = []
        self.sizes: list[int] = []
        self.dead: tuple[str, ...] = ()

    def start(self) -> None:
        """Resume, or make sure that there is nothing to overwrite."""
        directory = self.output.directory
        newest = None if directory is None else latest(directory)
        self.result.checkpoint = newest
        if newest is None:
            if self.output.resume:
                self.notices.append(f"nothing to resume in {directory}: starting at step 0")
            return
        if not self.output.resume:
            raise ValueError(
                f"{directory}: holds a run at {newest.name}; resume it, or choose another directory"
            )
        # The run directory and not the file: an error can then name the checkpoint before.
        checkpoint = read(newest)
        self.run.restore(checkpoint)
        self.saved_at = self.run.steps
        self.notices += _resumed(checkpoint, self.run)

    def go(self, stack: ExitStack, received: list[str]) -> None:
        """Step until the end or a signal, then save."""
        run, config = self.run, self.run.config
        self.metrics = MetricsFile(self.output.directory, since=run.steps)
        stack.callback(self.metrics.close)
        self.reporter = Reporter(
            steps=config.steps,
            done=run.steps,
            every=config.log_every,
            console=self.output.console,
            quiet=self.output.quiet,
        )
        with self.reporter:
            for notice in self.notices:
                self.reporter.say(notice)
            try:
                while run.steps < config.steps and not received:
                    self._step()
            except NonFiniteError as error:
                kept = self.result.checkpoint
                told = f"; the last good checkpoint is {kept}" if kept else ""
                raise NonFiniteError(f"stopped at {error}{told}") from error
            if self.saved_at != run.steps:
                self._save()
            if received:
                self.result.stopped = received[0]
                self.reporter.say(f"{received[0]}: saved and stopped at step {run.steps}")

    def _step(self) -> None:
        run, config = self.run, self.run.config
        record = run.step()
        self.result.history.append(record)
        self.metrics.write("train", **record.to_dict())
        self.reporter.step(record)
        self._name_dead(record)
        if self.on_step is not None:
            self.on_step(record)
        if config.carry_state and len(self.sizes) < 3:
            self._watch_state()
        last = run.steps == config.steps
        if last or (config.eval_every and run.steps % config.eval_every == 0):
            self._measure()
        if last or (config.save_every and run.steps % config.save_every == 0):
            self._save()

    def _watch_state(self) -> None:
        """Warn of a carried state that grows with every step: in the end it fills the memory."""
        self.sizes.append(sum(tensor.numel() for tensor in flatten(self.run.inner).values()))
        if len(self.sizes) == 3 and self.sizes[0] < self.sizes[1] < self.sizes[2]:
            self.reporter.say(
                f"warning: the carried state grows by {self.sizes[2] - self.sizes[1]:,} numbers a "
                "step, because a layer attends to all that came before; give it a window"
            )

    def _name_dead(self, record: Step) -> None:
        """Say so when a level in context stops being written, or is again."""
        if record.dead == self.dead:
            return
        self.dead = record.dead
        told = ", ".join(record.dead)
        self.reporter.say(
            f"warning: step {record.step}: dead, nothing was written: {told}" if told
            else f"step {record.step}: every level in context is written"
        )  # fmt: skip

    def _measure(self) -> None:
        if self.held_out is None:
            return
        loss = self.run.evaluate(self.held_out)
        per_token = self.tokenizer.count_bytes(self.held_out) / len(self.held_out)
        bits = self.run.bits_per_byte(loss) * self.run.bytes_per_token / per_token
        step = self.run.steps
        self.result.held_out[step] = bits
        self.metrics.write(
            "held_out", step=step, tokens=self.run.optimizer.tokens, loss=loss, bits_per_byte=bits
        )
        self.reporter.say(f"step {step}: held-out text {bits:.4f} bits/byte")

    def _save(self) -> None:
        directory = self.output.directory
        if directory is None:
            return
        self.run.check()
        self.metrics.sync()
        text = self.tokenizer.to_json()
        checkpoint = self.run.checkpoint(
            {"tokenizer": self.tokenizer.name, "source": dict(self.output.source)},
            {} if text is None else {"tokenizer.json": text},
        )
        self.result.checkpoint = write(directory, checkpoint, keep=self.run.config.keep)
        self.saved_at = self.run.steps


def _open(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{directory}: cannot be made a run directory: {error.strerror}"
        ) from error


def _resumed(checkpoint: Checkpoint, run: Run) -> list[str]:
    told = [f"resumed at step {checkpoint.step} of {run.config.steps}"]
    before = checkpoint.config["train"]["steps"]
    if before != run.config.steps:
        told.append(f"the run was to end at step {before}: the learning rate follows the new end")
    if run.steps >= run.config.steps:
        told.append("nothing left to do: ask for more steps to go on")
    threads = checkpoint.state["threads"]
    if run.device.type == "cpu" and threads != torch.get_num_threads():
        told.append(
            f"saved with {threads} threads, now {torch.get_num_threads()}: "
            "sums may differ in their last bits"
        )
    return told
