"""A slow copy of a model: the running average of its weights.

    slow <- b slow + (1 - b) theta            after every step of theta

A memory of the fast weights with a period of one step and a horizon of 1 / (1 - b) steps. It lags
behind them, and as a mean of noisy steps it is usually the better model (Polyak and Juditsky 1992).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class RunningAverage:
    """The average of a model that is being trained.

    Args:
        model: whose weights are averaged; it is copied.
        kept: b, the share of the average that a step leaves as it is; 0: the average is the model.

    Raises:
        ValueError: if ``kept`` is not in [0, 1).

    >>> model = nn.Linear(1, 1, bias=False)
    >>> nn.init.zeros_(model.weight)
    Parameter containing:
    tensor([[0.]], requires_grad=True)
    >>> average = RunningAverage(model, kept=0.5)
    >>> nn.init.ones_(model.weight)
    Parameter containing:
    tensor([[1.]], requires_grad=True)
    >>> average.follow(model)                  # the first steps count more: b = 2 / 11
    >>> round(average.model.weight.item(), 4)
    0.8182
    """

    def __init__(self, model: nn.Module, *, kept: float) -> None:
        if not 0 <= kept < 1:
            raise ValueError(f"kept: expected 0 <= kept < 1, got {kept}")
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.kept, self.steps = kept, 0

    @torch.no_grad()
    def follow(self, model: nn.Module) -> None:
        """Move after a step of the model: at first nearly to where it is now."""
        self.steps += 1
        kept = min(self.kept, (1 + self.steps) / (10 + self.steps)) if self.kept else 0.0
        for mine, moved in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(moved.to(mine.dtype), 1 - kept)
        for mine, moved in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(moved)

    def state(self) -> dict[str, Any]:
        """Weights and count; not copied."""
        return {"weights": dict(self.model.state_dict()), "steps": self.steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken."""
        self.model.load_state_dict(state["weights"])
        self.steps = int(state["steps"])
