"""``nestling inspect``: a model and its training as one system: table, JSON and picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from nestling.cli.overrides import configured, parse_overrides
from nestling.levels import NestedSystem
from nestling.models import LanguageModel, ModelConfig
from nestling.models.presets import MIXERS
from nestling.report.fold import fold, folded_transfers
from nestling.report.level_table import table_rows
from nestling.report.picture import picture
from nestling.storage.checkpoint import read_manifest, resolve
from nestling.train import TrainConfig, nested_system
from nestling.train.liveness import never_written, not_written
from nestling.train.optimizer import optimizer_of


def print_levels(
    what: str,
    *,
    size: str,
    overrides: Sequence[str],
    json_file: str | None = None,
    svg_file: str | None = None,
) -> None:
    """Print the table of a preset, or of a checkpoint with the batch that it is trained with.

    Args:
        what: a preset, a checkpoint or a run.
        size: of a preset.
        overrides: of a preset.
        json_file: where the system goes as JSON; ``"-"``: to standard output, and nothing else.
        svg_file: where its picture goes.

    Raises:
        ValueError: if ``what`` is none of these.
    """
    title, model, config = _find(what, size, overrides)
    system = trained(model, config)
    if svg_file is not None:
        _, _, name = title.rpartition(": ")  # not where a checkpoint lies
        drawn = picture(system, title=f"{name}: what learns how often, and from what")
        Path(svg_file).write_text(drawn, encoding="utf-8")
    if json_file is not None:
        text = json.dumps(system.to_dict(), indent=1) + "\n"
        if json_file == "-":
            sys.stdout.write(text)
            return
        Path(json_file).write_text(text, encoding="utf-8")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no edge to wrap at
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table(system))
    console.print(knowledge(system))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = sum(c.parameters for c in system.components)
    console.print(
        f"{parameters:,} parameters are trained; the whole system holds {held:,} numbers. Periods "
        f"are in tokens;\none step of the optimizer reads {config.tokens_per_step:,} "
        f"({config.batch} x {config.length} x {config.accumulate}).",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for line in [*never_written(model.config, config), not_written(_directory(what))]:
        if line:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def trained(model: LanguageModel, config: TrainConfig) -> NestedSystem:
    """The nested system of a model that is trained as ``config`` says."""
    optimizer = optimizer_of(model, config)
    return nested_system(model, optimizer, tokens_per_step=config.tokens_per_step)


def table(system: NestedSystem) -> Table:
    """The level table, one row per component."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("level", "period"):
        grid.add_column(name, justify="right")
    for name in ("component", "memory", "rule", "context flow"):
        grid.add_column(name, overflow="fold")
    grid.add_column("parameters", justify="right")
    before = 0
    for row in table_rows(system, model=""):
        grid.add_row(
            str(row.number) if row.number != before else "",
            "never" if row.period is None else f"{row.period:,}",
            row.name,
            row.memory,
            row.rule,
            row.context_flow,
            f"{row.parameters:,}",
        )
        before = row.number
    return grid


def knowledge(system: NestedSystem) -> Table:
    """How knowledge moves between the components; blocks of one kind are one."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("knowledge moves by")
    grid.add_column("from", overflow="fold")
    grid.add_column("to", overflow="fold")
    before = ""
    for kind, source, targets in folded_transfers(fold(system)):
        grid.add_row(kind.replace("_", "-") if kind != before else "", source, targets)
        before = kind
    return grid


def _find(what: str, size: str, overrides: Sequence[str]) -> tuple[str, LanguageModel, TrainConfig]:
    if what in MIXERS and not Path(what, "checkpoint.json").exists():
        config = configured(what, size, parse_overrides(overrides))
        return f"{what} ({size})", _unallocated(config), TrainConfig()
    if not Path(what).exists():
        raise ValueError(
            f"{what}: neither a checkpoint nor a preset; presets are {', '.join(sorted(MIXERS))}"
        )
    path = resolve(what)
    manifest = read_manifest(path)
    config = ModelConfig.from_dict(manifest["config"]["model"])
    title = (
        f"{path}: {config.preset} after {manifest['step']:,} steps, {manifest['tokens']:,} tokens"
    )
    return title, _unallocated(config), TrainConfig.from_dict(manifest["config"]["train"])


def _directory(what: str) -> Path:
    """Of the run's metrics, whether the run or one of its checkpoints was named."""
    path = Path(what)
    return path.parent if (path / "checkpoint.json").exists() else path


def _unallocated(config: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return LanguageModel(config)
