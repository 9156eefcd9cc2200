"""``nestling inspect``: a model and its training as one table of levels, fastest first."""

from __future__ import annotations

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
from nestling.optim import LevelwiseOptimizer, adamw
from nestling.report.level_table import table_rows
from nestling.storage.checkpoint import read_manifest, resolve
from nestling.train import TrainConfig, nested_system
from nestling.train.liveness import never_written, not_written
from nestling.train.run import by_level


def print_levels(what: str, *, size: str, overrides: Sequence[str]) -> None:
    """Print the table of a preset, or of a checkpoint with the batch that it is trained with.

    Raises:
        ValueError: if ``what`` is neither.
    """
    title, model, config = _find(what, size, overrides)
    system = trained(model, config)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a file or a pipe has no edge to wrap at
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table(system))
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
    optimizer = LevelwiseOptimizer(
        by_level(model), lambda named: adamw(named, lr=config.lr, betas=config.betas)
    )
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
