"""What a run shows while it goes on: one line per step, and on a terminal a bar below the lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from nestling.train.run import Step


class Reporter:
    """Prints steps; a context manager that owns the bar.

    Args:
        steps: of the whole run.
        done: of them before this process.
        every: steps between two lines.
        console: where to; rich decides whether it is a terminal.
        quiet: print nothing.
    """

    def __init__(
        self,
        *,
        steps: int,
        done: int = 0,
        every: int = 1,
        console: Console | None = None,
        quiet: bool = False,
    ) -> None:
        self.steps, self.done, self.every, self.quiet = steps, done, every, quiet
        self.console = console or Console()
        self._began = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> Reporter:
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=self.steps, completed=self.done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def step(self, record: Step) -> None:
        """Show one step."""
        if self._bar is not None:
            self._bar.update(self._task, completed=record.step)
        if record.step % self.every == 0 or record.step == self.steps:
            self.say(line(record, steps=self.steps, left=self._left(record.step)))

    def say(self, text: str) -> None:
        """One line, above the bar if there is one."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _left(self, step: int) -> float:
        elapsed = time.monotonic() - self._began
        return elapsed / max(1, step - self.done) * (self.steps - step)


def line(record: Step, *, steps: int, left: float) -> str:
    """A step in words.

    >>> line(Step(step=7, tokens=14336, loss=1.5, bits_per_byte=2.164, grad_norm=0.8, lr=1e-3,
    ...           tokens_per_second=12345.6, memory_mb=512.3, moved=(1, 8192), seconds=0.2),
    ...      steps=100, left=75.2)
    'step   7/100  loss 1.5000  2.164 bits/byte  grad 0.800  12,346 tok/s  512 MiB  1:15 left  moved 1, 8192'
    """  # noqa: E501
    width = len(str(steps))
    parts = [
        f"step {record.step:>{width}}/{steps}",
        f"loss {record.loss:.4f}",
        f"{record.bits_per_byte:.3f} bits/byte",
        f"grad {record.grad_norm:.3f}",
        f"{record.tokens_per_second:,.0f} tok/s",
        f"{record.memory_mb:,.0f} MiB",
        f"{clock(left)} left",
    ]
    slow = [period for period in record.moved if period and period > 1]
    if slow:
        parts.append("moved " + ", ".join(map(str, record.moved)))
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss.

    >>> clock(75.2), clock(3661.0)
    ('1:15', '1:01:01')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
