"""``nestling learn``: one text after the other, and what was kept of each.

    text 1, text 2, ...  ->  learner  ->  R[i, j]: bits per token on held-out text j after text i

Every file is an experience, in the order given. The run lives in ``OUT/learning`` and goes on when
the same command is given again; at its end ``OUT`` holds a checkpoint like that of a training run,
``record.json`` and two pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from nestling.cli.tables import new_console, new_table
from nestling.continual.protocol import Experience
from nestling.continual.record import Record
from nestling.continual.run import Progress, run
from nestling.continual.scoring import bits_per_target
from nestling.continual.sources import text_experience
from nestling.continual.strategies import Consolidated, GradientLearner, Replay, Sequential
from nestling.continual.stream import Stream
from nestling.data import Tokenizer, load_tokenizer
from nestling.levels import Consolidation
from nestling.models import LanguageModel, build
from nestling.models.presets import MIXERS
from nestling.optim import adamw
from nestling.report.streams import forgetting_curves, heat_map
from nestling.storage import Checkpoint, write
from nestling.storage.load import load_model
from nestling.storage.weights import weights
from nestling.train.signals import stop_signals


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for."""

    model: str
    texts: tuple[Path, ...]
    out: Path
    strategy: str
    lr: float
    batch: int
    length: int
    passes: int
    held_out: float
    stored: int
    size: str
    seed: int


def _consolidated(model: LanguageModel, request: Request) -> GradientLearner:
    return Consolidated(
        model, partial(adamw, lr=request.lr), vocabulary=model.vocab_size, seed=request.seed,
        consolidation=Consolidation(shift=4.5, length=request.length),
    )  # fmt: skip


def _sequential(model: LanguageModel, request: Request) -> GradientLearner:
    return Sequential(model, partial(adamw, lr=request.lr))


def _replay(model: LanguageModel, request: Request) -> GradientLearner:
    rows = max(1, request.batch // 2)
    return Replay(model, partial(adamw, lr=request.lr), capacity=request.stored, rows=rows,
                  seed=request.seed)  # fmt: skip


STRATEGIES: dict[str, Callable[[LanguageModel, Request], GradientLearner]] = {
    "consolidated": _consolidated,
    "sequential": _sequential,
    "replay": _replay,
}


def learn_texts(request: Request) -> None:
    """Learn, show what was kept, and save.

    Raises:
        ValueError: naming the argument that cannot be used.
    """
    if request.strategy not in STRATEGIES:
        raise ValueError(f"--strategy: expected one of {list(STRATEGIES)}, got {request.strategy}")
    if not 0 < request.held_out < 1:
        raise ValueError(f"--held-out: expected a number between 0 and 1, got {request.held_out}")
    if not (request.lr > 0 and math.isfinite(request.lr)):
        raise ValueError(f"--lr: expected a positive number, got {request.lr}")
    model, tokenizer = _opened(request)
    train, test = _experiences(request, tokenizer)
    stream = Stream(
        train, batch=request.batch, passes=request.passes, seed=request.seed, boundaries=False
    )
    learner = STRATEGIES[request.strategy](model, request)
    console = new_console()
    settings = {
        name: value for name, value in asdict(request).items() if name not in ("out", "texts")
    }
    request.out.mkdir(parents=True, exist_ok=True)
    with stop_signals() as asked, _bar(console) as show:
        record = run(
            learner, stream, test, score=bits_per_target, folder=request.out / "learning",
            settings=settings, on_progress=show, stop=lambda: bool(asked),
        )  # fmt: skip
    if not record.finished:
        console.print(f"stopped and saved ({asked[0]}): the same command goes on", markup=False)
        return
    folder = _saved(request, learner, tokenizer, record)
    _tell(console, record, folder)


def _opened(request: Request) -> tuple[LanguageModel, Tokenizer]:
    if request.model in MIXERS:
        torch.manual_seed(request.seed)
        return build(request.model, size=request.size), load_tokenizer()
    if not Path(request.model).exists():
        raise ValueError(
            f"model: expected a run, a checkpoint or one of {sorted(MIXERS)}, got {request.model!r}"
        )
    return load_model(request.model)


def _experiences(
    request: Request, tokenizer: Tokenizer
) -> tuple[list[Experience], list[Experience]]:
    """To learn and to measure on: the end of every file is held out."""
    train, test = [], []
    seen: dict[str, Path] = {}
    for file in request.texts:
        if not file.is_file():
            raise ValueError(f"{file}: no such file")
        data = file.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest in seen:
            raise ValueError(f"{file}: duplicate file: the same content as {seen[digest]}")
        seen[digest] = file
        try:
            ids = tokenizer.encode(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: expected text in UTF-8: {error.reason}") from error
        cut = int(len(ids) * (1 - request.held_out))
        train.append(text_experience(str(file), ids[:cut], length=request.length))
        test.append(text_experience(str(file), ids[cut:], length=request.length))
    return train, test


class _bar:  # noqa: N801 - used as a function
    """A bar with the time that is left on a terminal, else a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console, self._said = console, time.monotonic()
        self._live = Bar(
            TextColumn("{task.description}"), BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}, left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._live.add_task("learning", total=None)

    def __enter__(self) -> Callable[[Progress], None]:
        self._live.start()
        return self.show

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, now: Progress) -> None:
        """Called after every batch and row."""
        loss = "" if now.loss is None else f", {now.loss / math.log(2):.2f} bits per token"
        self._live.update(self._task, completed=now.batches, total=now.total,
                          description=f"{Path(now.name).name}{loss}")  # fmt: skip
        late = time.monotonic() - self._said > 15
        if not self.console.is_terminal and (late or now.row is not None):
            self._said = time.monotonic()
            text = f"{now.batches}/{now.total} batches: {now.name}{loss}"
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _saved(
    request: Request, learner: GradientLearner, tokenizer: Tokenizer, record: Record
) -> Path:
    """The model that answers as a checkpoint, the numbers and the pictures."""
    model: Any = learner.slow.weights if isinstance(learner, Consolidated) else learner.model
    text = tokenizer.to_json()
    tokens = sum(count for _, count in record.online)
    folder = write(
        request.out,
        Checkpoint(
            step=len(record.online), tokens=tokens, model=weights(model),
            config={"model": model.config.to_dict(), "learned": dict(record.settings)},
            attachments={} if text is None else {"tokenizer.json": text},
        ),
        keep=1,
    )  # fmt: skip
    numbers = {"record": json.loads(record.to_json()), "metrics": record.metrics()}
    (request.out / "record.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    names = [Path(name).name for name in record.names]
    unit = "bits per token"
    heat_map(record.R, names, title=request.strategy, unit=unit).savefig(request.out / "kept.png")
    if len(names) > 1:
        curves = forgetting_curves({request.strategy: record.R}, names, unit=unit)
        curves.savefig(request.out / "curves.png")
    return folder


def _tell(console: Console, record: Record, folder: Path) -> None:
    grid = new_table("text", "before>", "just learned>", "now>", "lost>")
    for j, name in enumerate(record.names):
        column = [row[j] for row in record.R]
        best = min(column[j + 1 :])
        grid.add_row(Path(name).name, f"{column[0]:.3f}", f"{column[j + 1]:.3f}",
                     f"{column[-1]:.3f}", f"{column[-1] - best:+.3f}")  # fmt: skip
    console.print("bits per token on held-out text, lower is better", markup=False)
    console.print(grid)
    console.print(
        f"saved {folder}, record.json and pictures beside it", markup=False, soft_wrap=True
    )
