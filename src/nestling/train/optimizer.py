"""The optimizer of a run: one for each level of the model, as its configuration says."""

from __future__ import annotations

from functools import partial

from torch import nn

from nestling.models.by_level import by_level
from nestling.optim import LevelwiseOptimizer, optimizer_named, roles
from nestling.optim.levelwise import Make
from nestling.train.config import TrainConfig


def optimizer_of(
    model: nn.Module, config: TrainConfig, *, make: Make | None = None
) -> LevelwiseOptimizer:
    """What moves the weights of ``model``.

    Args:
        model: its levels and the roles of its parameters decide what goes where.
        config: name, learning rate and the rest.
        make: builds the optimizer of one level instead.

    >>> optimizer = optimizer_of(nn.Linear(4, 4), TrainConfig(optimizer="m3"))
    >>> [group["rule"] for one in optimizer.optimizers for group in one.param_groups]
    ['M3', 'Adam']
    """
    named = partial(
        optimizer_named, config.optimizer, lr=config.lr, betas=config.betas,
        weight_decay=config.weight_decay, roles=roles(model),
    )  # fmt: skip
    return LevelwiseOptimizer(by_level(model), make or named, clip=config.clip)
