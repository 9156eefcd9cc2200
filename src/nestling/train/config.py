"""What a training run is, as one frozen value that can be written to JSON and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nestling.optim import OPTIMIZERS

CADENCE = frozenset({"log_every", "eval_every", "save_every", "keep"})
"""Fields that decide what is reported and kept, and never enter a number that is learned."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Attributes:
        steps: optimizer steps of the whole run; the cosine ends there.
        batch: rows of one forward pass.
        length: tokens of a row.
        accumulate: forward passes whose gradients are averaged into one step.
        lr: learning rate at its peak.
        warmup: steps of linear warm-up; ``None``: a tenth of the run, at most 100.
        floor: learning rate at the end, as a fraction of the peak.
        optimizer: what moves the weights, one of :data:`nestling.optim.OPTIMIZERS`.
        betas: AdamW's decay of its two moments; also where AdamW moves only what is no matrix.
        weight_decay: of matrices; norms, biases and embeddings have none.
        clip: largest gradient norm; ``None``: no limit.
        precision: ``"bfloat16"`` runs the forward pass under autocast; weights stay float32.
        carry_state: read the text on where each row stopped and carry the inner state over.
        seed: of the stream.
        log_every: steps between two lines.
        eval_every: steps between two measurements on held-out text; 0: only at the end.
        save_every: steps between two checkpoints; 0: only at the end.
        keep: checkpoints kept.

    Raises:
        ValueError: naming the first field that does not fit.

    >>> config = TrainConfig(steps=200, lr=1e-3)
    >>> config.warmup_steps, config.tokens_per_step
    (20, 2048)
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    steps: int = 1000
    batch: int = 8
    length: int = 256
    accumulate: int = 1
    lr: float = 3e-3
    warmup: int | None = None
    floor: float = 0.1
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip: float | None = 1.0
    precision: str = "float32"
    carry_state: bool = False
    seed: int = 0
    log_every: int = 1
    eval_every: int = 200
    save_every: int = 200
    keep: int = 2

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "length": 1, "accumulate": 1, "log_every": 1, "keep": 1}
        least |= {"seed": 0, "eval_every": 0, "save_every": 0}
        if self.warmup is not None:
            least["warmup"] = 0
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")
        for name, low, high in (
            ("lr", 0.0, math.inf),
            ("floor", 0.0, 1.0),
            ("weight_decay", 0.0, math.inf),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a positive number or None, got {self.clip}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(
                f"optimizer: expected one of {list(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision: expected 'float32' or 'bfloat16', got {self.precision!r}")

    @property
    def warmup_steps(self) -> int:
        """Steps of the linear warm-up."""
        return min(100, self.steps // 10) if self.warmup is None else self.warmup

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch * self.length * self.accumulate

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: for an unknown field, naming it.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"config: TrainConfig has no field {unknown}")
        return cls(**{**values, "betas": tuple(values.get("betas", cls.betas))})

    def differences(self, other: TrainConfig) -> list[str]:
        """Fields that change what is learned and differ, ``"name: ours, not theirs"``.

        ``steps`` is not among them: a run may be prolonged.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name not in {*CADENCE, "steps"}]
        return [
            f"{name}: {getattr(self, name)}, not {getattr(other, name)}"
            for name in names
            if getattr(self, name) != getattr(other, name)
        ]
