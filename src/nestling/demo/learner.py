"""One model on the stream: its optimizer, its clock, and what its levels wrote.

Both models of the demo are learners of this one class; nothing here depends on which model it is.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F

from nestling.data import TextStream
from nestling.demo.budget import DemoBudget
from nestling.levels import Consolidation, Level, SlowLevel
from nestling.models import LanguageModel, ModelConfig, configure, match_parameters, parameter_count
from nestling.models.by_level import by_level
from nestling.optim import LevelwiseOptimizer, adamw
from nestling.report.level_table import table_rows
from nestling.report.results import TableRow
from nestling.train.schedule import warmup_cosine
from nestling.train.system import nested_system

TITLES = {"hope": "Hope", "transformer": "Transformer++"}


@dataclass(frozen=True)
class Step:
    """What one optimizer step measured: loss in bits per byte, gradient norm, levels moved."""

    loss: float
    norm: float
    moved: tuple[Level, ...]


@dataclass
class Learner:
    """A model, the optimizer that moves its levels, and how far it has come."""

    name: str
    model: LanguageModel
    optimizer: LevelwiseOptimizer
    budget: DemoBudget
    slow: SlowLevel | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    _start: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def answers(self) -> LanguageModel:
        """The model that is measured: the slow level's average, where there is one."""
        return self.model if self.slow is None else cast(LanguageModel, self.slow.weights)

    @property
    def title(self) -> str:
        """Its name for people."""
        return TITLES[self.name] + (" with a slow level" if self.slow is not None else "")

    def learn(self, stream: TextStream, steps: int) -> Iterator[Step]:
        """Take ``steps`` optimizer steps, yielding after each.

        Raises:
            NonFiniteError: if a gradient is NaN or infinite; nothing has been moved by it.
        """
        for _ in range(steps):
            began = time.perf_counter()
            inputs, targets = stream.next()
            # The step is counted from the start of the whole stream: no learner is told where a
            # domain begins, so the rate does not rise again there.
            self.optimizer.scale_lr(
                warmup_cosine(self.step, steps=10**9, warmup=self.budget.warmup, floor=1.0)
            )
            logits, _ = self.model(inputs)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
            (loss + self._held(inputs, loss.item())).backward()
            moved = self.optimizer.step(tokens=inputs.numel())
            if self.slow is not None:
                self.slow.follow(self.model)
            self.step += 1
            self.tokens += inputs.numel()
            self.seconds += time.perf_counter() - began
            yield Step(loss.item() / math.log(2), moved.norm, moved.levels)

    def _held(self, inputs: torch.Tensor, loss: float) -> torch.Tensor | float:
        """What the slow level adds to the loss of a step."""
        if self.slow is None:
            return 0.0
        self.slow.notice(inputs, loss)
        held = self.slow.hold(self.model, new=inputs.numel())
        return 0.0 if held is None else held.loss

    def remember_weights(self) -> None:
        """Keep a copy of the parameters, for :meth:`change_by_part`."""
        self._start = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    @torch.no_grad()
    def change_by_part(self) -> dict[str, float]:
        """``|theta - theta_0| / |theta_0|`` of each part since :meth:`remember_weights`."""
        change: dict[str, float] = {}
        size: dict[str, float] = {}
        levels = self.model.parameter_levels()
        for name, parameter in self.model.named_parameters():
            part = part_of(name, levels[name])
            old = self._start[name]
            change[part] = change.get(part, 0.0) + float((parameter - old).square().sum())
            size[part] = size.get(part, 0.0) + float(old.square().sum())
        return {part: math.sqrt(change[part] / max(size[part], 1e-30)) for part in change}

    def level_table(self) -> list[TableRow]:
        """Model and optimizer as one nested system, fastest first."""
        tokens = self.budget.batch * self.budget.length
        system = nested_system(self.model, self.optimizer, tokens_per_step=tokens, slow=self.slow)
        return table_rows(system, model=self.name)


def part_of(name: str, level: Level) -> str:
    """What a parameter belongs to, for the report: a level of the MLPs, or a kind of layer.

    >>> part_of("blocks.1.continuum.levels.2.mlp.down.weight", Level(4096))
    'MLP level, period 4,096'
    >>> part_of("blocks.0.mixer.out.weight", Level(1)), part_of("embedding.weight", Level(1))
    ('sequence layers', 'embedding')
    """
    if re.search(r"\.levels\.\d+\.", name):
        if level.period == 1:
            return "MLP level, every step"
        return f"MLP level, period {level.period:,}"
    if ".mixer." in name:
        return "sequence layers"
    return "embedding" if name.startswith("embedding") else "norms"


def build_learners(budget: DemoBudget, *, seed: int) -> list[Learner]:
    """Hope, and a Transformer++ with the same number of parameters, both new."""
    shape: dict[str, Any] = {
        "width": budget.width, "heads": budget.heads, "layers": budget.layers
    }  # fmt: skip
    hope = configure("hope", periods=budget.periods, **shape)
    transformer = match_parameters("transformer", parameter_count(hope), **shape)
    return [
        _learner(hope, budget, seed, slow=budget.consolidation),
        _learner(transformer, budget, seed, slow=None),
    ]


def _learner(
    config: ModelConfig, budget: DemoBudget, seed: int, *, slow: Consolidation | None
) -> Learner:
    torch.manual_seed(seed)
    model = LanguageModel(config)
    optimizer = LevelwiseOptimizer(
        by_level(model),
        lambda part: adamw(part, lr=budget.lr, weight_decay=budget.weight_decay),
        clip=budget.clip,
    )
    level = None
    if slow is not None:
        level = SlowLevel(model, slow, vocabulary=model.vocab_size, seed=seed)
    return Learner(config.preset, model, optimizer, budget, level)
