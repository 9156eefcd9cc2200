"""A carried state in training: fast copies that belong to weights which go on moving.

    theta = theta_carried + (theta_0 - stop(theta_0))        carried in value, theta_0 in gradient
    theta_carried <- theta_carried + (theta_0' - theta_0)    after an outer step from theta_0

A state that is carried from batch to batch is cut from its history. Without the first line the
learned initial states of levels in context, which are MLPs, would get no gradient after the first
batch; without the second, what the outer loop learns would never reach a stream that has begun.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from nestling.continuum import ContinuumState, LevelState
from nestling.layers.block import BlockState
from nestling.memory.state import Weights
from nestling.models.language_model import LanguageModel
from nestling.models.state import ModelState
from nestling.shapes import Tensor

Learned = list[dict[str, dict[str, Tensor]]]
"""Initial states by block, place of the level and matrix."""


def learned(model: LanguageModel) -> Learned:
    """Copies of the initial states of all levels in context.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1, periods=(4,), hidden=8,
    ...               regime="in_context")
    >>> {name: tuple(W.shape) for name, W in learned(model)[0]["0"].items()}
    {'gate_up': (16, 16), 'down': (8, 16)}
    """
    return [
        {
            index: {name: W.detach().clone() for name, W in weights.items()}
            for index, weights in own.items()
        }
        for own in _live(model)
    ]


def attached(model: LanguageModel, state: ModelState) -> ModelState:
    """The same numbers, through which a gradient reaches the initial states as they are now."""
    through = [
        {i: {name: W - W.detach() for name, W in weights.items()} for i, weights in own.items()}
        for own in _live(model)
    ]
    return _shifted(state, through)


@torch.no_grad()
def moved_along(model: LanguageModel, state: ModelState, before: Learned) -> ModelState:
    """The state after an outer step that moved the initial states from ``before``."""
    shift = [
        {i: {name: W - old[i][name] for name, W in weights.items()} for i, weights in own.items()}
        for own, old in zip(_live(model), before, strict=True)
    ]
    return _shifted(state, shift)


def _live(model: LanguageModel) -> list[dict[str, Weights]]:
    return [
        {
            str(index): level.weights()
            for index, level in enumerate(block.continuum.level_list())
            if level.spec.in_context
        }
        for block in model.block_list()
    ]


def _shifted(state: ModelState, shift: Learned) -> ModelState:
    observed = state.observed
    if observed is not None and observed.chunk is not None:
        chunk = dataclasses.replace(observed.chunk, blocks=_blocks(observed.chunk.blocks, shift))
        observed = dataclasses.replace(observed, chunk=chunk)
    return ModelState(blocks=_blocks(state.blocks, shift), observed=observed)


def _blocks(blocks: tuple[BlockState, ...], shift: Learned) -> tuple[BlockState, ...]:
    return tuple(_block(block, own) for block, own in zip(blocks, shift, strict=True))


def _block(block: BlockState, shift: Mapping[str, Weights]) -> BlockState:
    if block.continuum is None:
        return block
    levels = {i: _level(level, shift[i]) for i, level in block.continuum.levels.items()}
    return dataclasses.replace(block, continuum=ContinuumState(levels=levels))


def _level(level: LevelState, shift: Weights) -> LevelState:
    initial = level.initial
    if initial is not None:
        initial = dataclasses.replace(initial, weights=_sum(initial.weights, shift))
    return dataclasses.replace(level, weights=_sum(level.weights, shift), initial=initial)


def _sum(weights: Weights, shift: Weights) -> Weights:
    return {name: W + shift[name] for name, W in weights.items()}
