"""The optimizers that are held against each other, and which step sizes are tried for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter

from nestling.optim import (
    DGD,
    DMGD,
    M3,
    AdaMuon,
    DeltaMomentum,
    GeneralizedMomentum,
    adamw,
    m3,
    roles,
)

WEIGHT_DECAY = 0.1
BETAS = (0.9, 0.95)
ADAMS = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""Step sizes of methods whose steps have about the length of AdamW's."""
PLAIN = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Step sizes of methods whose steps have the length of the gradient."""

TUNING = 100
"""The seed that step sizes are chosen with."""
Make = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


@dataclass(frozen=True)
class Method:
    """An optimizer as it is measured.

    Attributes:
        make: for a model and a step size; several if one optimizer does not take all parameters.
        grid: step sizes, in order.
    """

    make: Make
    grid: Sequence[float] = ADAMS


def next_steps(grid: Sequence[float], done: Mapping[float, float]) -> list[float]:
    """Step sizes to try: three in the middle, then on beyond an end as long as that is the best.

    >>> grid = (1.0, 2.0, 4.0, 8.0)
    >>> next_steps(grid, {}), next_steps(grid, {1.0: 5.0, 2.0: 4.0, 4.0: 3.0})
    ([1.0, 2.0, 4.0], [8.0])
    >>> next_steps(grid, {1.0: 5.0, 2.0: 4.0, 4.0: 3.0, 8.0: 6.0})
    []
    """
    middle = (len(grid) - 1) // 2
    first = [lr for lr in grid[middle - 1 : middle + 2] if lr not in done]
    if first:
        return first
    places = sorted(grid.index(lr) for lr in done)
    best = grid.index(min(done, key=lambda lr: done[lr]))
    if best == places[0] and best > 0:
        return [grid[best - 1]]
    if best == places[-1] and best + 1 < len(grid):
        return [grid[best + 1]]
    return []


def of_role(model: nn.Module, *wanted: str) -> dict[str, Parameter]:
    """The parameters of these roles, by name."""
    found = roles(model)
    return {n: p for n, p in model.named_parameters() if found.get(n) in wanted}


def torch_muon(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """``torch.optim.Muon`` for the matrices, AdamW for the rest, stacks of matrices among it."""
    matrices = of_role(model, "matrix")
    rest = {n: p for n, p in model.named_parameters() if n not in matrices}
    return [
        torch.optim.Muon(matrices.values(), lr=lr, weight_decay=WEIGHT_DECAY,
                         adjust_lr_fn="match_rms_adamw"),
        adamw(rest, lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY),
    ]  # fmt: skip


def torch_adamw(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """``torch.optim.AdamW``; matrices decay."""
    return [adamw(dict(model.named_parameters()), lr=lr, betas=BETAS, weight_decay=WEIGHT_DECAY)]


def momentum(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """``torch.optim.SGD`` with momentum 0.9."""
    return [torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)]


def one(kind: Callable[..., torch.optim.Optimizer], **settings: Any) -> Make:
    """An optimizer of this library with some settings."""

    def make(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
        return [kind(model, lr=lr, **settings)]

    return make


def by_rule(**settings: Any) -> Make:
    """M3 with other settings than its own."""
    return one(partial(_generalized, rule=m3(**settings)), weight_decay=WEIGHT_DECAY)


def _generalized(model: nn.Module, *, rule: Any, lr: float, weight_decay: float) -> Any:
    return GeneralizedMomentum(model, rule, lr=lr, weight_decay=weight_decay)


METHODS: Mapping[str, Method] = {
    "AdamW": Method(torch_adamw),
    "Muon": Method(torch_muon),
    "AdaMuon": Method(one(AdaMuon, weight_decay=WEIGHT_DECAY)),
    "M3": Method(one(M3, weight_decay=WEIGHT_DECAY)),
    "momentum": Method(momentum, PLAIN),
    "delta momentum": Method(one(DeltaMomentum), PLAIN),
    "delta momentum, delta 0.1": Method(one(DeltaMomentum, delta=0.1), PLAIN),
    "DMGD": Method(one(DMGD, weight_decay=WEIGHT_DECAY)),
    "DGD": Method(one(DGD), PLAIN),
    "DGD, erase 0.01": Method(one(DGD, erase=0.01), PLAIN),
}
"""Those of NL Fig. 11, and the others of NL section 4."""

ABLATIONS: Mapping[str, Make] = {
    "without the slow momentum": by_rule(alpha=0.0),
    "slow momentum with weight 0.5": by_rule(alpha=0.5),
    "slow momentum every 4 steps": by_rule(frequency=4),
    "without second moment": by_rule(second_moment=None),
    "second moment of the update": by_rule(second_moment="update"),
    "second moment not damped": by_rule(damping=0.0),
    "without Nesterov": by_rule(nesterov=False),
    "all as printed, but the length": by_rule(sums=True, nesterov=False, damping=0.0),
    "without Newton-Schulz": by_rule(output=None),
}
"""M3 with one thing changed: which of its parts does what."""
