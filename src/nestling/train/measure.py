"""Measuring: loss on held-out text, memory, and where the first NaN comes from."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from nestling.models import LanguageModel, losses
from nestling.shapes import Tensor


@torch.no_grad()
def evaluate(
    model: LanguageModel, ids: Tensor, *, batch: int, length: int, carry_state: bool = False
) -> float:
    """Mean loss on one row of ids, nats per token.

    The ids are cut into up to ``batch`` equal rows, read side by side in pieces of ``length``
    tokens; with ``carry_state`` the inner state is carried along each row. At most one token per
    row is left out.

    Raises:
        ValueError: if there are fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"ids: expected at least 2 tokens to measure on, got {len(ids)}")
    device = next(model.parameters()).device
    rows = max(1, min(batch, (len(ids) - 1) // length))
    per_row = (len(ids) - 1) // rows
    starts = torch.arange(rows)[:, None] * per_row
    total, count, state = 0.0, 0, None
    for start in range(0, per_row, length):
        window = starts + torch.arange(start, min(start + length, per_row) + 1)
        piece = ids[window].long().to(device)
        nats, after = losses(model, piece[:, :-1], piece[:, 1:], state)
        state = after if carry_state else None
        total += float(nats.sum())
        count += nats.numel()
    return total / count


@torch.no_grad()
def first_non_finite(model: torch.nn.Module, inputs: Tensor, state: Any = None) -> str:
    """Where the first NaN or infinity is: a parameter, or the output of a part; "" if nowhere."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f", parameter {name} is not finite"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(out, Tensor) and not bool(out.isfinite().all()):
                found.append(name)

        return hook

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    try:
        model(inputs, state)
    finally:
        for hook in hooks:
            hook.remove()
    return f", first in the output of {found[0]}" if found else ""


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MiB: of the accelerator if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
