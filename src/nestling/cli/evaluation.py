"""``nestling eval``: tasks of lm-eval on any model, as a table and as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nestling.cli.device import choose_device
from nestling.cli.tables import new_console, new_table


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for; see the options of ``nestling eval``."""

    model: Path | None
    tasks: Sequence[str]
    include: Sequence[Path]
    writes: str | None
    session: Path | None
    tokenizer: Path | None
    limit: int | None
    shots: int | None
    batch: int
    length: int | None
    out: Path | None
    device: str


def evaluate_model(request: Request) -> None:
    """Print a table of results, and write everything as JSON if asked.

    Raises:
        ValueError: if the model, a task, the session or an option cannot be used.
        ImportError: if the extra is not installed.
    """
    if request.model is None:
        raise ValueError("model: expected a directory: a run, a checkpoint, or of transformers")
    if not request.tasks:
        raise ValueError("--tasks: expected names, as in --tasks piqa,boolq; --list shows some")
    _needs_extra()
    if request.out is not None and not request.out.resolve().parent.is_dir():
        raise ValueError(f"--out: {str(request.out.parent)!r} is no folder")
    from nestling.hf.evaluation import Evaluation, evaluate, quiet
    from nestling.hf.opening import open_model

    how = Evaluation(
        writes=request.writes, limit=request.limit, shots=request.shots, batch=request.batch,
        length=request.length, include=tuple(request.include),
    )  # fmt: skip
    with quiet():
        found = open_model(
            request.model, tokenizer=request.tokenizer, device=choose_device(request.device)
        )
    with _progress() as on_progress:
        done = evaluate(
            found, request.tasks, how=how, session=request.session, on_progress=on_progress
        )
    if request.out is not None:
        request.out.write_text(json.dumps(done, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    console = new_console()
    for line in _told(str(request.model), done):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(results_table(done))


def print_tasks() -> None:
    """The downstream names that papers use, and what they are in the installed lm-eval.

    Raises:
        ImportError: if the extra is not installed.
    """
    _needs_extra()
    from nestling.hf.tasks import DOWNSTREAM, VERSION, downstream_tasks

    grid = new_table("name", f"task in lm-eval {VERSION}", "of", "measured by", "data")
    for known in downstream_tasks():
        kind = DOWNSTREAM[known.name].kind
        grid.add_row(known.name, known.task, kind, known.measures, escape(known.data))
    new_console().print(grid)


def results_table(done: Mapping[str, Any]) -> Table:
    """One row for each metric; an arrow says which way is better."""
    grid = new_table("task", "documents>", "metric", "value>", "stderr>")
    higher = done["higher_is_better"]
    for task, values in [*done["results"].items(), *done["groups"].items()]:
        if task in done["groups"] and task in done["results"] and values is done["results"][task]:
            continue  # told below, as a group
        count = done["documents"].get(task, {}).get("effective", "")
        first = True
        for name, value in values.items():
            if "_stderr" in name:
                continue
            metric, _, suffix = name.partition(",")
            spread = values.get(f"{metric}_stderr" + (f",{suffix}" if suffix else ""))
            better = (higher.get(task) or {}).get(metric)
            arrow = "" if better is None else " up" if better else " down"
            grid.add_row(
                escape(task) if first else "", str(count) if first else "",
                escape(name) + f"[dim]{arrow}[/]", _number(value),
                "" if spread is None else _number(spread),
            )  # fmt: skip
            first = False
    return grid


def _told(model: str, done: Mapping[str, Any]) -> list[str]:
    how, own = done["how"], done["model"]
    reads = {
        "on": "writes on: every request's own text is learned while it is read",
        "off": "writes off: every request only reads",
        None: "no inner state",
    }[how["writes"]]
    start = "" if how["session"] is None else f", from the session {how['session']}"
    lines = [f"{model}: {own['kind']}, {own['parameters']:,} parameters; {reads}{start}"]
    if done["truncated"]:
        lines.append(
            f"{done['truncated']:,} requests were longer than {how['length']:,} tokens and lost "
            "their beginning; --length reads more"
        )
    return lines


@contextmanager
def _progress() -> Iterator[Callable[[int], None] | None]:
    """A line that counts while it goes on, on a terminal only."""
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield None
        return
    with console.status("evaluating") as status:
        yield lambda read: status.update(f"evaluating: {read:,} texts and steps read")


def _needs_extra() -> None:
    if find_spec("lm_eval") is None or find_spec("transformers") is None:
        raise ImportError('nestling eval needs lm-eval: pip install "nestling[eval]"')


def _number(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"
