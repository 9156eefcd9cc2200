"""``nestling stack``: levels on a pre-trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from nestling.levels import Level


@dataclass(frozen=True, kw_only=True)
class Stacking:
    """What is asked for; see the options of ``nestling stack``."""

    levels: str
    plan: str
    layers: str | None
    step_size: float
    error_rule: str
    kept: float
    matrices: str
    rank: int | None
    window: int | None


def stack_model(model: Path, out: Path, request: Stacking) -> None:
    """Read a model, put levels on it, and write it.

    Raises:
        ValueError: if the model, an option or the directory cannot be used.
        ImportError: if the extra ``hf`` is not installed.
    """
    periods = numbers("levels", request.levels)
    layers = None if request.layers is None else numbers("layers", request.layers)
    if not model.is_dir():
        raise ValueError(f"{model}: no such directory (a model is read from a local one)")
    from nestling.hf import stack_levels
    from nestling.hf.stack_files import load_base, save_stacked

    stacked = stack_levels(
        load_base(model), [Level(period) for period in periods], plan=request.plan,
        layers=layers, step_size=request.step_size, error_rule=request.error_rule,
        kept=request.kept, matrices=request.matrices, rank=request.rank, window=request.window,
    )  # fmt: skip
    save_stacked(stacked, out, tokenizer=model)
    console = Console(width=None if Console().is_terminal else 200)
    for index, period in enumerate(periods):
        slots = [slot for slot in stacked.stack.slots if slot.level == index]
        blocks = sorted({slot.block for slot in slots})
        size = sum(
            a * b if request.rank is None else min(request.rank, a, b) * (a + b)
            for a, b in (slot.shape for slot in slots)
        )
        console.print(
            f"level {index + 1}: every {period:,} tokens, layers "
            f"{', '.join(map(str, blocks))}, {size:,} numbers for each text",
            markup=False, highlight=False,
        )  # fmt: skip
    console.print(
        f"{out}: to let it learn: nestling session feed SESSION TEXT --checkpoint {out}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def numbers(name: str, given: str) -> list[int]:
    """Whole numbers between commas.

    Raises:
        ValueError: naming the option.

    >>> numbers("levels", "512,2048")
    [512, 2048]
    """
    try:
        return [int(part) for part in given.split(",")]
    except ValueError as error:
        raise ValueError(f"{name}: expected whole numbers as in 512,2048, got {given!r}") from error
