"""The small models, texts and comparisons that the training tests share."""

from __future__ import annotations

import torch

from nestling.data import TextStream
from nestling.models import LanguageModel, build
from nestling.train import Result, Run, TrainConfig

# These models are so small that handing work to a second thread takes longer than doing it.
torch.set_num_threads(1)

PERIODS = (1, 100, 500)
"""With 48 tokens a step the second level moves every two or three steps, the third every ten."""


def text(size: int = 3000, seed: int = 0) -> torch.Tensor:
    """Bytes with something to learn: each is one of three that may follow the one before."""
    generator = torch.Generator().manual_seed(seed)
    jumps = torch.randint(3, (size,), generator=generator)
    return (jumps.cumsum(0) % 64).to(torch.uint8)


def model(preset: str = "hope", seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    return build(preset, width=16, heads=2, layers=1, hidden=16, periods=PERIODS)


def config(**changes) -> TrainConfig:
    values = {"steps": 12, "batch": 2, "length": 24, "lr": 1e-2, "warmup": 3}
    return TrainConfig(**{**values, **changes})


def stream(config: TrainConfig, ids: torch.Tensor | None = None) -> TextStream:
    return TextStream(
        text() if ids is None else ids,
        batch=config.batch,
        length=config.length,
        seed=config.seed,
        order="contiguous" if config.carry_state else "random",
    )


def new_run(config: TrainConfig, preset: str = "hope") -> Run:
    return Run(model(preset), stream(config), config)


def numbers(result: Result | list) -> list[tuple[float, float]]:
    """What must not change by a single bit."""
    history = result if isinstance(result, list) else result.history
    return [(step.loss, step.grad_norm) for step in history]


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
