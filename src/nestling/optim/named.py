"""Optimizers by name, for recipes: each as good as it is without more than a learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import Parameter

from nestling.optim.adam import adam
from nestling.optim.delta_momentum import delta_momentum
from nestling.optim.dmgd import dmgd
from nestling.optim.generalized import GeneralizedMomentum, Others
from nestling.optim.gradient_rule import GradientRule
from nestling.optim.groups import adamw, decay_groups
from nestling.optim.m3 import m3
from nestling.optim.muon import adamuon, muon
from nestling.optim.roles import Role

RULES: Mapping[str, Callable[[], GradientRule]] = {
    "m3": m3,
    "muon": muon,
    "adamuon": adamuon,
    "dmgd": dmgd,
    "delta_momentum": delta_momentum,
}
OPTIMIZERS = ("adamw", *RULES, "momentum")
"""``adamw`` and ``momentum`` are torch's. The last two take learning rates of SGD's size, the
others of AdamW's."""


def optimizer_named(
    name: str,
    parameters: Mapping[str, Parameter],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.1,
    roles: Mapping[str, Role] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of a name.

    Args:
        name: one of :data:`OPTIMIZERS`.
        parameters: to move, by name.
        lr: learning rate.
        betas: of AdamW, and of the Adam that moves what is no matrix.
        weight_decay: of matrices.
        roles: of parameters by name (:func:`nestling.optim.roles`); told from names and shapes
            unless given.

    Raises:
        ValueError: for another name.

    >>> optimizer_named("m3", {"w": Parameter(torch.zeros(4, 4))}, lr=1e-3)
    GeneralizedMomentum (
      M3: 1 parameters, 16 numbers, lr 0.001, weight decay 0.1
    )
    """
    if name == "adamw":
        return adamw(parameters, lr=lr, betas=betas, weight_decay=weight_decay)
    if name == "momentum":
        groups: Any = decay_groups(parameters, weight_decay=weight_decay)
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    if name not in RULES:
        raise ValueError(f"optimizer: expected one of {list(OPTIMIZERS)}, got {name!r}")
    return GeneralizedMomentum(
        parameters.items(), RULES[name](), lr=lr, weight_decay=weight_decay,
        others=Others(rule=adam(betas)), roles=roles,
    )  # fmt: skip
