"""Warm starts: levels that take over what a model has learned and at first change nothing.

    chain:        x + MLP(x)  =  MLP_k(... MLP_1(x)),    MLP_k = MLP, the others with zero output
    independent:  MLP(x)      =  sum_l MLP_l(x),         the hidden vectors shared out

Levels that start from noise behind each other tend to leave the slowest one dead. So a model is
trained with few levels first and gets the others one by one (progressive stacking), or its levels
start from an MLP that was trained without any (NL 7.3). As long as no level in context writes, the
new model computes what the old one did.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from nestling.continuum import ContinuumConfig, ContinuumLevel, Independent
from nestling.layers.continuum import ContinuumMemory, MemoryLevel
from nestling.models.language_model import LanguageModel


def with_levels(model: LanguageModel, continuum: ContinuumConfig) -> LanguageModel:
    """The model with the one MLP of each block as the initial states of these levels.

    Args:
        model: with one level in each block; left as it is.
        continuum: the levels. Their hidden sizes follow from the MLP: in a chain the slowest level
            is the MLP, and the others keep their own size; independent levels share its hidden
            vectors, as evenly as possible.

    Raises:
        ValueError: if the model has several levels, or fewer hidden vectors than levels.

    >>> from nestling.continuum import in_context
    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1, hidden=32)
    >>> more = with_levels(model, ContinuumConfig(levels=in_context(8, 64), hidden=4))
    >>> [level.hidden for level in more.blocks[0].continuum.levels]
    [4, 32]
    """
    if len(model.config.continuum.chain) != 1:
        raise ValueError(
            f"model: expected one level in each block, got {len(model.config.continuum.chain)}; "
            "with_level adds to several"
        )
    chain, old = continuum.chain, _levels(model)[0][0]
    shares = _shares(old.hidden, len(chain))
    if isinstance(continuum.variant, Independent):
        if not all(shares):
            raise ValueError(
                f"continuum: {len(chain)} independent levels cannot share {old.hidden} hidden "
                "vectors"
            )
        chain = tuple(
            dataclasses.replace(level, hidden=share)
            for level, share in zip(chain, shares, strict=True)
        )
    else:
        chain = (*chain[:-1], dataclasses.replace(chain[-1], hidden=old.hidden))
    made = _like(model, dataclasses.replace(continuum, levels=chain))
    scales = _mixes(model)
    for levels, (source,), memory, mix in zip(
        _levels(made), _levels(model), _memories(made), scales, strict=True
    ):
        if isinstance(continuum.variant, Independent):
            start = 0
            for level, share in zip(levels, shares, strict=True):
                _copy(source, level, torch.arange(start, start + share))
                start += share
            _set_mix(memory, [mix[0]] * len(levels))
            continue
        for level in levels[:-1]:
            _silence(level)
        _copy(source, levels[-1])
        with torch.no_grad():
            levels[-1].mlp.down.weight.mul_(mix[0])
    return made


def with_level(
    model: LanguageModel, level: ContinuumLevel, *, start: str = "copy"
) -> LanguageModel:
    """The model with one more level in each block, at the place of its period.

    Args:
        model: left as it is.
        level: a hidden size of its own is only possible with ``start="noise"``.
        start: ``"copy"`` starts from its neighbour, the next slower level or else the slowest. In a
            chain it takes over everything but the last matrix, which is zero; independent levels
            share the neighbour's weight ``c_l``. ``"noise"`` starts from random features, the last
            matrix zero.

    Raises:
        ValueError: for another ``start``, or a hidden size that does not fit a copy.

    >>> from nestling.continuum import in_context
    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1, periods=(8, 64))
    >>> with_level(model, in_context(16)[0]).config.continuum.periods
    (8, 16, 64)
    """
    if start not in ("copy", "noise"):
        raise ValueError(f"start: expected 'copy' or 'noise', got {start!r}")
    config, chain = model.config.continuum, list(model.config.continuum.chain)
    place = sum(_rank(old) <= _rank(level) for old in chain)
    near = min(place, len(chain) - 1)
    size = chain[near].hidden or config.hidden
    if start == "copy" and level.hidden not in (None, size):
        raise ValueError(
            f"level: a copy has its neighbour's hidden size {size}, not {level.hidden}"
        )
    if start == "copy":
        level = dataclasses.replace(level, hidden=chain[near].hidden)
    chain.insert(place, level)
    periods = tuple(one.period for one in chain)
    made = _like(model, dataclasses.replace(config, levels=tuple(chain), periods=periods))
    for levels, old, memory, mix in zip(
        _levels(made), _levels(model), _memories(made), _mixes(model), strict=True
    ):
        rest = [one for index, one in enumerate(levels) if index != place]
        for source, target in zip(old, rest, strict=True):
            _copy(source, target)
        if start == "copy":
            _copy(old[near], levels[place])
        if start == "copy" and memory.mix_scale is not None:
            mix = [c / 2 if index == near else c for index, c in enumerate(mix)]  # noqa: PLW2901
            _set_mix(memory, [*mix[:place], mix[near], *mix[place:]])
            continue
        _silence(levels[place])
        if memory.mix_scale is not None:
            _set_mix(memory, [*mix[:place], 1.0, *mix[place:]])
    return made


def _like(model: LanguageModel, continuum: ContinuumConfig) -> LanguageModel:
    """A model with these levels and everything else as it is."""
    weight = model.embedding.weight
    made = LanguageModel(dataclasses.replace(model.config, continuum=continuum))
    made = made.to(device=weight.device, dtype=weight.dtype)
    own = {n: p for n, p in model.state_dict().items() if ".continuum." not in n}
    made.load_state_dict(own, strict=False)
    return made


def _memories(model: LanguageModel) -> list[ContinuumMemory]:
    return [block.continuum for block in model.block_list()]


def _levels(model: LanguageModel) -> list[list[MemoryLevel]]:
    return [memory.level_list() for memory in _memories(model)]


def _mixes(model: LanguageModel) -> list[list[float]]:
    """The learned weights of independent levels, block by block; 1 in a chain."""
    return [
        [1.0] * len(memory.levels) if memory.mix_scale is None else memory.mix_scale.tolist()
        for memory in _memories(model)
    ]


@torch.no_grad()
def _set_mix(memory: ContinuumMemory, mix: Sequence[float]) -> None:
    assert memory.mix_scale is not None
    memory.mix_scale.copy_(torch.tensor(mix, dtype=torch.float64))


@torch.no_grad()
def _copy(source: MemoryLevel, target: MemoryLevel, hidden: torch.Tensor | None = None) -> None:
    """All that both have; of the MLP only some hidden vectors if they are given."""
    theirs = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        if name in theirs and not name.startswith("mlp."):
            parameter.copy_(theirs[name])
    if hidden is None:
        hidden = torch.arange(source.hidden)
    hidden = hidden.to(source.mlp.down.weight.device)
    rows = torch.cat([hidden, hidden + source.hidden])
    target.mlp.gate_up.weight.copy_(source.mlp.gate_up.weight[rows])
    target.mlp.down.weight.copy_(source.mlp.down.weight[:, hidden])


@torch.no_grad()
def _silence(level: MemoryLevel) -> None:
    """Its output is zero; features stay, so that its first gradient is not."""
    level.mlp.down.weight.zero_()


def _shares(size: int, count: int) -> list[int]:
    return [(size * (i + 1)) // count - (size * i) // count for i in range(count)]


def _rank(level: ContinuumLevel) -> float:
    return math.inf if level.period is None else float(level.period)
