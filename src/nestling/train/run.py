"""One training run: model, optimizer, text and carried state, moved one step at a time.

loss = mean over tokens of -ln p(next token),      bits per byte = loss / ln 2 / bytes per token
every step: gradients of ``accumulate`` batches, averaged; clocks + tokens; due levels move
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nestling.data import TextStream
from nestling.levels import Level
from nestling.memory import flatten, map_tensors, unflatten
from nestling.models import LanguageModel
from nestling.optim import LevelwiseOptimizer, NonFiniteError, adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor
from nestling.train.checkpoint import Checkpoint, CheckpointError
from nestling.train.config import TrainConfig
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "moved": list(self.moved)}


class Run:
    """A model in training.

    Args:
        model: what is trained; its device decides where.
        stream: batches of text.
        config: how.
        bytes_per_token: of the text, for bits per byte.
        make: builds the optimizer of one level; AdamW of ``config`` by default.

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
        self.optimizer = LevelwiseOptimizer(
            _by_level(model),
            make
            or (
                lambda named: adamw(
                    named, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
                )
            ),
            clip=config.clip,
        )
        self.inner: Any = None
        self.steps = 0
        self.device = next(model.parameters()).device

    def step(self) -> Step:
        """Read ``accumulate`` batches and move what is due.

        Raises:
            NonFiniteError: if the loss or a gradient is NaN or infinite, saying at which step and
                where in the model. Nothing has been moved then.
        """
        config, began = self.config, time.perf_counter()
        total = torch.zeros((), device=self.device)
        for _ in range(config.accumulate):
            inputs, targets = (part.to(self.device) for part in self.stream.next())
            with self._autocast():
                logits, state = self.model(inputs, self.inner)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            (loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
            if config.carry_state:
                # Contiguous, so that a state read back from a file is the same to the last bit.
                self.inner = map_tensors(lambda t: t.detach().contiguous(), state)
        value = float(total)
        if not math.isfinite(value):
            raise NonFiniteError(self._lament(f"the loss is {value}", inputs))
        factor = warmup_cosine(
            self.steps, steps=config.steps, warmup=config.warmup_steps, floor=config.floor
        )
        self.optimizer.scale_lr(factor)
        try:
            moved = self.optimizer.step(tokens=config.tokens_per_step)
        except NonFiniteError as error:
            raise NonFiniteError(self._lament(str(error), inputs)) from error
        self.steps += 1
        seconds = time.perf_counter() - began
        return Step(
            step=self.steps,
            tokens=self.optimizer.tokens,
            loss=value,
            bits_per_byte=self.bits_per_byte(value),
            grad_norm=moved.norm,
            lr=config.lr * factor,
            tokens_per_second=config.tokens_per_step / seconds,
            memory_mb=peak_memory(self.device),
            moved=tuple(level.period for level in moved.levels),
            seconds=seconds,
        )

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
        return unflatten(self.model.initial_state(self.config.batch), tensors)

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _lament(self, what: str, inputs: Tensor) -> str:
        place = self.stream.batches
        with self._autocast():
            where = first_non_finite(self.model, inputs, self.inner)
        return (
            f"step {self.steps + 1} (batch {place} of the text): {what}{where}; nothing was moved "
            f"by it. Try a smaller lr (now {self.config.lr:g}), a longer warmup "
            f"({self.config.warmup_steps} steps), a smaller clip ({self.config.clip})"
            + (" or float32" if self.config.precision != "float32" else "")
        )


@torch.no_grad()
def evaluate(
    model: LanguageModel, ids: Tensor, *, batch: int, length: int, carry_state: bool = False
) -> float:
    """Mean loss on one row of ids, nats per token.

    The ids are cut into up to ``batch`` equal rows, read side by side in pieces of ``length``
    tokens; with ``carry_state`` the inner state is carried along each row. At most one token per
    row is left out.

    Raises:
        ValueError: if there are fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"ids: expected at least 2 tokens to measure on, got {len(ids)}")
    device = next(model.parameters()).device
    rows = max(1, min(batch, (len(ids) - 1) // length))
    per_row = (len(ids) - 1) // rows
    starts = torch.arange(rows)[:, None] * per_row
    total, count, state = 0.0, 0, None
    for start in range(0, per_row, length):
        window = starts + torch.arange(start, min(start + length, per_row) + 1)
        piece = ids[window].long().to(device)
        logits, after = model(piece[:, :-1], state)
        state = after if carry_state else None
        targets = piece[:, 1:].flatten()
        total += float(F.cross_entropy(logits.float().flatten(0, 1), targets, reduction="sum"))
        count += targets.numel()
    return total / count


@torch.no_grad()
def first_non_finite(model: torch.nn.Module, inputs: Tensor, state: Any = None) -> str:
    """Where the first NaN or infinity is: a parameter, or the output of a part; "" if nowhere."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            return f", parameter {name} is not finite"
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(out, Tensor) and not bool(out.isfinite().all()):
                found.append(name)

        return hook

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n]
    try:
        model(inputs, state)
    finally:
        for hook in hooks:
            hook.remove()
    return f", first in the output of {found[0]}" if found else ""


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; tied ones once."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return named | {n: t for n, t in model.state_dict().items() if n not in parameters}


@torch.no_grad()
def load_weights(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy ``tensors`` into the model.

    Raises:
        ValueError: naming the first weight that is missing, unknown or of another shape.
    """
    own = weights(model)
    for kind, names in (("misses", own.keys() - tensors), ("does not know", tensors.keys() - own)):
        if names:
            raise ValueError(
                f"weights: the {'checkpoint' if kind == 'misses' else 'model'} {kind} "
                f"{min(names)!r} ({len(names)} in all)"
            )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"weights: {name} has shape {tuple(tensors[name].shape)} in the checkpoint, "
                f"{tuple(tensor.shape)} in the model"
            )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])


def random_state() -> dict[str, Any]:
    """State of every global random number generator."""
    version, numbers, spare = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, torch.tensor(numbers), spare],
        "numpy": [torch.from_numpy(np.array(keys, dtype=np.int64)), position, has_gauss, cached],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` returned."""
    torch.set_rng_state(state["torch"].clone())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([one.clone() for one in state["cuda"]])
    version, numbers, spare = state["python"]
    random.setstate((version, tuple(numbers.tolist()), spare))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))


def peak_memory(device: torch.device) -> float:
    """Largest memory so far in MiB: of the accelerator if there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _by_level(model: LanguageModel) -> list[tuple[Level, dict[str, torch.nn.Parameter]]]:
    levels: dict[Level, dict[str, torch.nn.Parameter]] = {}
    of = model.parameter_levels()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            levels.setdefault(of[name], {})[name] = parameter
    return list(levels.items())


def _check_stream(stream: TextStream, config: TrainConfig) -> None:
    for name in ("batch", "length"):
        if getattr(stream, name) != getattr(config, name):
            raise ValueError(
                f"stream: expected {name} {getattr(config, name)}, got {getattr(stream, name)}"
            )
    if config.carry_state and stream.order != "contiguous":
        raise ValueError("stream: carry_state needs order='contiguous', got 'random'")
