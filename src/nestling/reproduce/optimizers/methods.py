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

Make = Callable[[nn.Module, float], list[torch.optim.Optimizer]]


@dataclass(frozen=True)
class Method:
    """An optimizer as it is measured.

    Attributes:
        make: for a model and a step size; several if one optimizer does not take all parameters.
        grid: step sizes, in order.
        start: the places on the grid that are tried first; then it goes on toward the best.
    """

    make: Make
    grid: Sequence[float] = ADAMS
    start: tuple[int, int, int] = (2, 3, 4)


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
    "DMGD": Method(one(DMGD, weight_decay=WEIGHT_DECAY)),
    "DGD": Method(one(DGD), PLAIN),
}
"""Those of NL Fig. 11, and the others of NL section 4."""
