"""Consolidation: what the fast levels learned moves to a slow one, which then holds them to it.

    every step:        theta     <- theta - f(grad of  -ln p_theta(new)  +  w n KL(dreams))
                       slow      <- b slow + (1 - b) theta
    a period is over:  teacher   <- slow,     dreams ~ p_teacher,     n counts the surprises
    KL(dreams)         =  mean over the tokens of some dreams of KL(p_teacher || p_theta)

Three levels of one model: weights that move with every step, their running average, which answers,
and a teacher that is held for a period. The teacher speaks to the fast level by text that it writes
itself; no text that was read is stored. After "Language Models Need Sleep" (arXiv 2606.03979),
which distils at the end of known periods; here a period ends by surprise or by the clock, and
because the average lags behind the newest steps, the teacher is the model from before them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestling.levels.average import RunningAverage
from nestling.levels.component import Component, Transfer
from nestling.levels.dreams import dream
from nestling.levels.level import Level
from nestling.levels.surprise import Shift, Surprise
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Consolidation:
    """When the slow level learns from the fast one, and how it holds it.

    Attributes:
        surprise: a period ends when the loss rises by so many standard errors; ``None``: never so.
        shift: it ends when the tokens become others by so many (:class:`Shift`); ``None``: never.
        period: it ends at the latest after so many tokens; ``None``: by surprise only.
        average: b, the share of the running average that a step leaves as it is; 0: none.
        dreams: sequences that the teacher writes.
        length: tokens of each.
        temperature: at which they are drawn.
        rehearsal: tokens of dreams for every new token.
        weight: w of the rehearsal, for each thing n that was learned before.

    Raises:
        ValueError: if a number is out of range.
    """

    surprise: float | None = 4.5
    shift: float | None = None
    period: int | None = None
    average: float = 0.98
    dreams: int = 256
    length: int = 128
    temperature: float = 1.0
    rehearsal: float = 0.5
    weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("period", "dreams", "length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("surprise", "shift", "temperature", "rehearsal", "weight"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: expected 0 <= average < 1, got {self.average}")


@dataclass(frozen=True)
class Held:
    """The rehearsal of one step: its loss, and the tokens that were dreamt for it."""

    loss: Tensor
    tokens: int


class SlowLevel:
    """The slow level of a model: its average, its teacher and the teacher's dreams.

    Around each step of whatever trains ``model``: :meth:`notice` before it, :meth:`hold` is added
    to its loss, :meth:`follow` after it.

    Args:
        model: the fast level; it must be able to write text (:func:`nestling.levels.dreams.dream`).
        config: when and how.
        vocabulary: token ids are below it.
        seed: of the dreams.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1)
    >>> config = Consolidation(dreams=4, length=8)
    >>> slow = SlowLevel(model, config, vocabulary=256)
    >>> ids = torch.arange(16).view(2, 8)
    >>> slow.notice(ids, loss=5.5), slow.hold(model, new=16) is None
    (False, True)
    >>> slow.consolidate()
    >>> slow.hold(model, new=16).tokens, tuple(slow.dreams.shape)
    (8, (4, 9))
    """

    def __init__(
        self, model: nn.Module, config: Consolidation, *, vocabulary: int, seed: int = 0
    ) -> None:
        if vocabulary < 1:
            raise ValueError(f"vocabulary: expected at least 1, got {vocabulary}")
        self.config = config
        self._average = RunningAverage(model, kept=config.average)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.dreams: Tensor | None = None
        self.written = 0
        self._device = next(model.parameters()).device
        self._seen = torch.zeros(vocabulary, dtype=torch.float64)
        self._surprise = Surprise(threshold=config.surprise or math.inf)
        self._shift = Shift(vocabulary, threshold=config.shift or math.inf)
        self._generator = torch.Generator().manual_seed(seed)
        self._count = {"tokens": 0, "since": 0, "surprises": 0, "credit": 0}

    @property
    def weights(self) -> nn.Module:
        """The average: what answers."""
        return self._average.model

    @property
    def surprises(self) -> int:
        """Times that something new has begun."""
        return self._count["surprises"]

    def notice(self, ids: Tensor, loss: float) -> bool:
        """What comes, and its loss before it is learned; whether a period ended here.

        Tokens of the new kind are not yet among those with which dreams begin.
        """
        count = self._count
        # Each that is in use is asked every time: it has to see everything.
        surprised = self.config.surprise is not None and self._surprise(loss)
        shifted = self.config.shift is not None and self._shift(ids)
        new = surprised or shifted
        if new:
            self._surprise.forget()
            self._shift.forget()
        late = self.config.period is not None and count["since"] >= self.config.period
        count["surprises"] += new
        if new or late:
            self.consolidate()
        self._seen += torch.bincount(ids.flatten().cpu(), minlength=len(self._seen))
        count["tokens"] += ids.numel()
        count["since"] += ids.numel()
        return new or late

    @torch.no_grad()
    def consolidate(self) -> None:
        """End the period: the average becomes the teacher, which then dreams.

        First tokens are drawn as often as each was seen. Those counts are all that is kept of a
        text.

        Raises:
            ValueError: if nothing has been noticed yet.
        """
        config = self.config
        if not bool(self._seen.any()):
            raise ValueError("consolidate: expected some text before, nothing was noticed yet")
        self.teacher.load_state_dict(self.weights.state_dict())
        drawn = torch.multinomial(
            self._seen, config.dreams, replacement=True, generator=self._generator
        )
        self.dreams = dream(
            self.teacher, drawn.to(self._device), length=config.length,
            temperature=config.temperature, generator=self._generator,
        )  # fmt: skip
        self.written += config.dreams * config.length
        self._count["since"] = 0

    def hold(self, model: nn.Module, *, new: int) -> Held | None:
        """The rehearsal that goes with ``new`` tokens; ``None`` as long as there is nothing to.

        What is not a whole sequence is left for the next step.
        """
        config, count = self.config, self._count
        if self.dreams is None:
            return None
        due = count["credit"] + round(config.rehearsal * new)
        rows, count["credit"] = divmod(due, config.length)
        if not rows:
            return None
        index = torch.randint(len(self.dreams), (rows,), generator=self._generator)
        ids = self.dreams[index.to(self._device), :-1]
        with torch.no_grad():
            said = _log_probabilities(self.teacher, ids)
        loss = F.kl_div(
            _log_probabilities(model, ids), said, log_target=True, reduction="batchmean"
        )
        return Held(loss * config.weight * max(count["surprises"], 1), ids.numel())

    def follow(self, model: nn.Module) -> None:
        """Move the average after a step: at first it is nearly where the model is."""
        self._average.follow(model)

    def components(self, *, tokens_per_step: int = 1, of: Sequence[str] = ()) -> list[Component]:
        """The slow level for the level table: its average and its teacher.

        A period that ends by surprise has no fixed length; it is shown by the shortest that it can
        have, as many steps as a surprise needs to be seen.

        Args:
            tokens_per_step: tokens between two steps of the model.
            of: names of the components that hold the model's weights.
        """
        size = sum(p.numel() for p in self.weights.parameters())
        shortest = (self._surprise.recent + self._surprise.before) * tokens_per_step
        config, ends = self.config, []
        if config.surprise is not None:
            ends.append(f"surprise of {config.surprise:g}")
        if config.shift is not None:
            ends.append(f"shift of tokens of {config.shift:g}")
        if config.period is not None:
            ends.append(f"every {config.period:,} tokens")
            noticed = config.surprise is not None or config.shift is not None
            shortest = min(shortest, config.period) if noticed else config.period
        average, teacher = "slow.average", "slow.teacher"
        return [
            Component(
                name=average,
                level=Level(tokens_per_step),
                memory="one number per weight",
                rule=f"DotProduct x Decay({config.average:g})",
                context_flow="weights after every step",
                parameters=size,
                kind="moments",
                after=tuple(of),
                transfers=tuple(Transfer("conditioning", name, average) for name in of),
            ),
            Component(
                name=teacher,
                level=Level(shortest if ends else None),
                memory=f"one number per weight, {config.dreams} x {config.length} dreamt tokens",
                rule=f"replaced at {' or '.join(ends)}" if ends else "held",
                context_flow="weights of the average",
                parameters=size,
                kind="moments",
                transfers=(
                    Transfer("initialisation", average, teacher),
                    *(Transfer("generation", teacher, name) for name in of),
                ),
            ),
        ]

    def state(self) -> dict[str, Any]:
        """All that goes on, in plain values and tensors; not copied."""
        return {
            "average": self._average.state(),
            "teacher": dict(self.teacher.state_dict()),
            "dreams": self.dreams,
            "seen": self._seen,
            "surprise": self._surprise.state(),
            "shift": self._shift.state(),
            "generator": self._generator.get_state(),
            "count": {**self._count, "written": self.written},
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was taken.

        Raises:
            ValueError: if it is of a model with another vocabulary.
        """
        if len(state["seen"]) != len(self._seen):
            raise ValueError(
                f"state: expected a vocabulary of {len(self._seen)}, got {len(state['seen'])}"
            )
        self._average.load_state(state["average"])
        self.teacher.load_state_dict(state["teacher"])
        dreams = state["dreams"]
        self.dreams = None if dreams is None else dreams.clone().to(self._device)
        self._seen = state["seen"].double().cpu().clone()
        self._surprise.load_state(state["surprise"])
        self._shift.load_state(state["shift"])
        self._generator.set_state(state["generator"].cpu())
        count = dict(state["count"])
        self.written = int(count.pop("written"))
        self._count = {name: int(value) for name, value in count.items()}


def _log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    """``(N T, V)``."""
    found = model(ids)
    logits = found[0] if isinstance(found, tuple) else getattr(found, "logits", found)
    return logits.flatten(0, 1).float().log_softmax(-1)
