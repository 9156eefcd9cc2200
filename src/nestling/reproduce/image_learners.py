"""Models of images, and how each strategy is made of one and of what was chosen for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from nestling.continual.protocol import Batch, Learner
from nestling.continual.strategies import (
    EWC,
    ClassMeans,
    DarkReplay,
    InContext,
    LeastSquares,
    LowRank,
    LwF,
    Pairs,
    RandomFeatures,
    Replay,
    Sequential,
    StreamingDiscriminant,
)
from nestling.levels import Level
from nestling.reproduce.image_data import CLASSES
from nestling.shapes import Tensor

PIXELS = 28 * 28
Settings = Mapping[str, Any]
Build = Callable[[nn.Module, Settings, int], Learner]
"""A learner of a model, of settings, and of a seed; what needs no model leaves it alone."""


class Pixels(nn.Module):
    """Bytes to numbers from 0 to 1.

    >>> Pixels()(torch.tensor([[0, 255]], dtype=torch.uint8))
    tensor([[0., 1.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, pixels)``."""
        return x.float() / 255


class Perceptron(nn.Sequential):
    """An MLP of two hidden layers on images as bytes.

    >>> Perceptron(8)(torch.zeros(2, 784, dtype=torch.uint8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__(
            Pixels(), nn.Linear(PIXELS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, classes),
        )  # fmt: skip


class Heads(nn.Module):
    """A head for each part: behind the pixels stands which classes the image may be of.

    >>> x = torch.zeros(1, 794, dtype=torch.uint8)
    >>> x[0, -1] = 1
    >>> Heads(8)(x).argmax(1)
    tensor([9])
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = Perceptron(width)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, pixels + classes)``; what it cannot be has the lowest score there is."""
        scores, may = self.body(x[:, :-CLASSES]), x[:, -CLASSES:] > 0
        return scores.masked_fill(~may, torch.finfo(scores.dtype).min / 2)


class GrowingLwF(LwF):
    """LwF as in van de Ven and Tolias 2019: with k parts learned before, w is k.

    Where heads are told, all of them go on saying on the new images what they said.
    """

    parts = 0

    def distillation(self, batch: Batch, scores: Tensor) -> Tensor:
        """As in LwF; another pass through the model where heads are told."""
        self.strength = float(self.parts)
        if isinstance(self.model, Heads):
            everything = batch.inputs.clone()
            everything[:, -CLASSES:] = 1
            batch, scores = Batch(everything, batch.targets), self.scores(everything)
        return super().distillation(batch, scores)

    def end_experience(self, items: Batch) -> None:
        """One more part was learned."""
        super().end_experience(items)
        self.parts += 1

    def memory(self) -> dict[str, Any]:
        """The teacher, and how many parts it knows."""
        return {**super().memory(), "parts": self.parts}

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        super().load_memory(memory)
        self.parts = int(memory["parts"])


def sgd(settings: Settings) -> Any:
    """What makes an optimizer."""
    return lambda named: torch.optim.SGD(named.values(), lr=settings["lr"])


def adam(settings: Settings) -> Any:
    """What makes an optimizer."""
    return lambda named: torch.optim.Adam(named.values(), lr=settings["lr"], fused=True)


def levels(model: nn.Module, periods: Sequence[int]) -> Any:
    """The layers as levels, the last one first.

    >>> [(level.period, list(named)) for level, named in levels(Perceptron(8), (1, 10, 100))]
    [(1, ['5.weight', '5.bias']), (10, ['3.weight', '3.bias']), (100, ['1.weight', '1.bias'])]
    """
    layers = [(n, part) for n, part in model.named_modules() if isinstance(part, nn.Linear)]
    return [
        (Level(period), dict(part.named_parameters(prefix=name)))
        for period, (name, part) in zip(periods, reversed(layers), strict=True)
    ]


def plain(model: nn.Module, s: Settings, seed: int) -> Learner:
    """SGD and nothing else."""
    return Sequential(model, sgd(s), clip=None)


def plain_adam(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Adam; where it is told of an end, its moments end too."""
    return Sequential(model, adam(s), clip=None, keep_moments=not s.get("told", False))


def in_levels(model: nn.Module, s: Settings, seed: int) -> Learner:
    """SGD, each layer at its own period."""
    return Sequential(model, sgd(s), clip=None, levels=levels(model, s["periods"]))


def ewc(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Online EWC with SGD."""
    return _ewc(model, sgd(s), s, seed)


def ewc_adam(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Online EWC with Adam."""
    return _ewc(model, adam(s), s, seed)


def _ewc(model: nn.Module, make: Any, s: Settings, seed: int) -> Learner:
    return EWC(model, make, strength=s["strength"], gamma=1.0, items=s["items"],
               targets=s.get("targets", "empirical"), clip=None, seed=seed)  # fmt: skip


def lwf(model: nn.Module, s: Settings, seed: int) -> Learner:
    """LwF with SGD and one strength."""
    return LwF(model, sgd(s), strength=s["strength"], temperature=2.0, clip=None)


def growing_lwf(model: nn.Module, s: Settings, seed: int) -> Learner:
    """LwF with Adam, the stronger the more it knows."""
    return GrowingLwF(model, adam(s), temperature=2.0, clip=None)


def replay(model: nn.Module, s: Settings, seed: int) -> Learner:
    """As many stored examples as new ones."""
    return Replay(model, sgd(s), capacity=s["stored"], seed=seed, clip=None)


def dark(model: nn.Module, s: Settings, seed: int) -> Learner:
    """DER++ with 128 stored examples a step for each of its two terms."""
    return DarkReplay(model, sgd(s), capacity=s["stored"], rows=128, alpha=s["alpha"], beta=1.0,
                      seed=seed, clip=None)  # fmt: skip


def low_rank(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Low-rank pairs on the hidden layers, the head as a whole."""
    pairs = Pairs(rank=s["rank"], trained=("5",))
    return LowRank(model, sgd(s), pairs=pairs, seed=seed, clip=None)


def means(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Class means of pixels."""
    return ClassMeans(Pixels(), PIXELS, CLASSES)


def discriminant(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Linear discriminant analysis of pixels."""
    return StreamingDiscriminant(Pixels(), PIXELS, CLASSES, shrinkage=s["shrinkage"],
                                 period=s["period"])  # fmt: skip


def least_squares(model: nn.Module, s: Settings, seed: int) -> Learner:
    """Least squares on random features of pixels."""
    width = s["features"]
    features = nn.Sequential(Pixels(), RandomFeatures(PIXELS, width, seed=seed))
    return LeastSquares(features, width, CLASSES, ridge=s["ridge"], period=s["period"])


def window(model: nn.Module, s: Settings, seed: int) -> Learner:
    """The newest images, read by a softmax memory."""
    return InContext(Pixels(), PIXELS, CLASSES, window=s["window"], temperature=s["temperature"])
