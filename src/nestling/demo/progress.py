"""How far the demo is, and about how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """One bar for the whole run.

    The models take turns and differ in speed, so the time left is estimated for each from its own
    steps, and what is measured in between is counted to the model that was measured.

    Args:
        console: where to draw; None draws nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._bar = console and Bar(
            TextColumn("{task.fields[what]:<34}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._total: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._spent: dict[str, float] = {}
        self._last = time.perf_counter()

    @classmethod
    def silent(cls) -> Progress:
        """One that shows nothing."""
        return cls(None)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=None, what="measuring before training", left=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def expect(self, steps: Mapping[str, int]) -> None:
        """Say how many steps each model will take."""
        self._total = dict(steps)
        self._done = dict.fromkeys(steps, 0)
        self._spent = dict.fromkeys(steps, 0.0)
        self._last = time.perf_counter()
        if self._bar:
            self._bar.update(self._task, total=sum(steps.values()))

    def step(self, model: str, title: str, domain: str, loss: float) -> None:
        """One optimizer step was taken."""
        now = time.perf_counter()
        self._spent[model] += now - self._last
        self._done[model] += 1
        self._last = now
        self._show(f"{title} learns {domain}: {loss:.2f} bits/byte")

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        if self._bar:
            self._bar.console.print(text, markup=False)

    @contextmanager
    def measuring(self, model: str, title: str, what: str) -> Iterator[None]:
        """Something of a model is measured; the time counts to its steps."""
        self._show(f"{title}: measuring {what}")
        yield
        now = time.perf_counter()
        if self._done[model]:  # before the first step there is nothing to count it to
            self._spent[model] += now - self._last
        self._last = now

    def seconds_left(self) -> float | None:
        """Estimate; None until every model has taken a few steps or one alone can be judged.

        A model that has not begun is assumed to be as slow as the slowest so far.
        """
        pace = {m: self._spent[m] / n for m, n in self._done.items() if n >= 3}
        if not pace:
            return None
        slowest = max(pace.values())
        return sum(
            (total - self._done[model]) * pace.get(model, slowest)
            for model, total in self._total.items()
        )

    def _show(self, what: str) -> None:
        if not self._bar:
            return
        left = self.seconds_left()
        text = "" if left is None else f"about {left / 60:.0f} min left" if left >= 90 else (
            f"about {5 * round(left / 5)} s left"
        )  # fmt: skip
        self._bar.update(self._task, completed=sum(self._done.values()), what=what, left=text)
