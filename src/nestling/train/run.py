"""One training run: model, optimizer, text and carried state, moved one step at a time.

loss = mean over tokens of -ln p(next token),      bits per byte = loss / ln 2 / bytes per token
every step: gradients of ``accumulate`` batches, averaged; clocks + tokens; due levels move
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from nestling.data import TextStream
from nestling.layers.continuum import Activity
from nestling.memory import flatten, map_tensors, unflatten
from nestling.models import LanguageModel
from nestling.models.carry import attached, learned, moved_along
from nestling.models.observe import observing
from nestling.optim import NonFiniteError
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor
from nestling.storage.checkpoint import Checkpoint, CheckpointError
from nestling.storage.weights import load_weights, random_state, set_random_state, weights
from nestling.train.config import TrainConfig
from nestling.train.measure import evaluate, first_non_finite, peak_memory
from nestling.train.optimizer import optimizer_of
from nestling.train.schedule import warmup_cosine


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step measured.

    Attributes:
        step: from 1.
        tokens: seen since the start of the run.
        loss: nats per token.
        bits_per_byte: the same in bits, per byte of text.
        grad_norm: of the levels that moved, before clipping.
        lr: learning rate.
        tokens_per_second: of this step.
        memory_mb: peak memory of the process, or of the accelerator, in MiB.
        moved: periods of the levels that moved.
        seconds: duration of this step.
        levels: what every level in context did in the last batch, by its component's name.
    """

    step: int
    tokens: int
    loss: float
    bits_per_byte: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    memory_mb: float
    moved: tuple[int | None, ...]
    seconds: float
    levels: Mapping[str, Activity] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``levels`` only if there are any."""
        values = {**asdict(self), "moved": list(self.moved)}
        if not self.levels:
            del values["levels"]
        return values

    @property
    def dead(self) -> tuple[str, ...]:
        """The levels in context that were not written."""
        return tuple(name for name, level in self.levels.items() if level.dead)


class Run:
    """A model in training.

    Args:
        model: what is trained; its device decides where.
        stream: batches of text.
        config: how.
        bytes_per_token: of the text, for bits per byte.
        make: builds the optimizer of one level; that of ``config`` by default.

    Raises:
        ValueError: if the stream's batches are not those of ``config``, or its order does not go
            with ``carry_state``.
    """

    def __init__(
        self,
        model: LanguageModel,
        stream: TextStream,
        config: TrainConfig,
        *,
        bytes_per_token: float = 1.0,
        make: Make | None = None,
    ) -> None:
        _check_stream(stream, config)
        self.model, self.stream, self.config = model, stream, config
        self.bytes_per_token = bytes_per_token
        self.optimizer = optimizer_of(model, config, make=make)
        self.inner: Any = None
        self._last: tuple[Tensor, Tensor, Any] | None = None
        self.steps = 0
        self.device = next(model.parameters()).device
        self._in_context = any(level.in_context for level in model.config.continuum.chain)
        self._follows = config.carry_state and self._in_context

    def step(self) -> Step:
        """Read ``accumulate`` batches and move what is due.

        Raises:
            NonFiniteError: if the loss or a gradient is NaN or infinite, saying at which step and
                where in the model. Nothing has been moved then.
        """
        config, began = self.config, time.perf_counter()
        total, levels = 0.0, {}
        for _ in range(config.accumulate):
            inputs, targets = (part.to(self.device) for part in self.stream.next())
            self._last = (inputs, targets, self.inner)
            loss, state = self._loss(*self._last)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(self._lament(f"the loss is {value}"))
            (loss / config.accumulate).backward()
            total += value / config.accumulate
            levels = self._activity(self.inner, state)
            if config.carry_state:
                # Contiguous, so that a state read back from a file is the same to the last bit.
                self.inner = map_tensors(lambda t: t.detach().contiguous(), state)
        factor = warmup_cosine(
            self.steps, steps=config.steps, warmup=config.warmup_steps, floor=config.floor
        )
        self.optimizer.scale_lr(factor)
        before = learned(self.model) if self._follows else None
        try:
            moved = self.optimizer.step(tokens=config.tokens_per_step)
        except NonFiniteError as error:
            raise NonFiniteError(self._lament(str(error))) from error
        if before is not None:
            self.inner = moved_along(self.model, self.inner, before)
        self.steps += 1
        seconds = time.perf_counter() - began
        return Step(
            step=self.steps,
            tokens=self.optimizer.tokens,
            loss=total,
            bits_per_byte=self.bits_per_byte(total),
            grad_norm=moved.norm,
            lr=config.lr * factor,
            tokens_per_second=config.tokens_per_step / seconds,
            memory_mb=peak_memory(self.device),
            moved=tuple(level.period for level in moved.levels),
            seconds=seconds,
            levels=levels,
        )

    @torch.no_grad()
    def check(self) -> None:
        """Make sure that the weights as they are now still predict: one more forward pass.

        A step with a finite gradient may still throw the weights out of bounds. Asked before every
        save, so that each checkpoint is one to go on from.

        Raises:
            NonFiniteError: if the last batch's loss, or the carried state, is no longer finite.
        """
        if self._last is None:
            return
        for name, tensor in flatten(self.inner).items() if self.inner is not None else ():
            if not bool(tensor.isfinite().all()):
                raise NonFiniteError(self._lament(f"carried state {name} is not finite"))
        with torch.random.fork_rng(self._cuda()):
            value = float(self._loss(*self._last)[0])
        if not math.isfinite(value):
            raise NonFiniteError(self._lament(f"after it the loss is {value}", self.steps))

    def bits_per_byte(self, loss: float) -> float:
        """Nats per token as bits per byte."""
        return loss / math.log(2) / self.bytes_per_token

    def evaluate(self, ids: Tensor) -> float:
        """Mean loss on ``ids``, nats per token; nothing of the run changes."""
        with self._autocast():
            return evaluate(
                self.model,
                ids,
                batch=self.config.batch,
                length=self.config.length,
                carry_state=self.config.carry_state,
            )

    def checkpoint(
        self, config: Mapping[str, Any], attachments: Mapping[str, str] | None = None
    ) -> Checkpoint:
        """Everything that the run is made of, as it stands; ``config`` is stored with it."""
        return Checkpoint(
            step=self.steps,
            tokens=self.optimizer.tokens,
            config={**config, "model": self.model.config.to_dict(), "train": self.config.to_dict()},
            model=weights(self.model),
            optimizer=self.optimizer.state_dict(),
            state={
                "stream": self.stream.state_dict(),
                "random": random_state(),
                "inner": None if self.inner is None else flatten(self.inner),
                "threads": torch.get_num_threads(),
                "device": self.device.type,
            },
            attachments=attachments or {},
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on where ``checkpoint`` was taken: the same losses, to the last bit on a CPU.

        Raises:
            CheckpointError: if it belongs to another model, text or configuration.
        """
        differs = self.config.differences(TrainConfig.from_dict(checkpoint.config["train"]))
        if differs:
            raise CheckpointError(f"resume: the run was started with other values ({differs[0]})")
        try:
            self.stream.load_state_dict(checkpoint.state["stream"])
            load_weights(self.model, checkpoint.model)
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except ValueError as error:
            raise CheckpointError(f"resume: {error}") from error
        inner = checkpoint.state["inner"]
        self.inner = None if inner is None else self._inner(inner)
        self.steps = checkpoint.step
        set_random_state(checkpoint.state["random"])

    def _inner(self, saved: Mapping[str, Tensor]) -> Any:
        # Clocks are whole numbers and live on the host, memories live with the model.
        tensors = {
            name: tensor.clone().to(self.device if tensor.is_floating_point() else "cpu")
            for name, tensor in saved.items()
        }
        template = self.model.initial_state(self.config.batch)
        if any(name.startswith("observed.") for name in tensors):
            template = observing(self.model, template)
        return unflatten(template, tensors)

    def _activity(self, before: Any, after: Any) -> dict[str, Activity]:
        """Asked before the weights move: a state that was never written is a view of them."""
        if not self._in_context:
            return {}
        return self.model.activity(before or self.model.initial_state(self.config.batch), after)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _cuda(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _loss(self, inputs: Tensor, targets: Tensor, inner: Any) -> tuple[Tensor, Any]:
        if inner is not None and self._in_context:
            inner = attached(self.model, inner)
        with self._autocast():
            if self.model.config.learns_from_loss:
                return self.model.observe(inputs, inner, targets=targets)
            logits, state = self.model(inputs, inner)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten()), state

    def _lament(self, what: str, step: int | None = None) -> str:
        assert self._last is not None
        with self._autocast():
            where = first_non_finite(self.model, self._last[0], self._last[2])
        config, at = self.config, step or self.steps + 1
        float32 = ", or float32" if config.precision != "float32" else ""
        return (
            f"step {at} (batch {self.stream.batches} of the text): {what}{where}. Try a smaller lr "
            f"(now {config.lr:g}), a longer warmup ({config.warmup_steps} steps) or a smaller clip "
            f"({config.clip}){float32}"
        )


def _check_stream(stream: TextStream, config: TrainConfig) -> None:
    for name in ("batch", "length"):
        if getattr(stream, name) != getattr(config, name):
            raise ValueError(
                f"stream: expected {name} {getattr(config, name)}, got {getattr(stream, name)}"
            )
    if config.carry_state and stream.order != "contiguous":
        raise ValueError("stream: carry_state needs order='contiguous', got 'random'")
