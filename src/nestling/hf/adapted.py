"""A model of transformers that reads with what was written beside its matrices.

    y = h W + b + sum over the slots of the matrix of  h[rows] dW  in  y[columns]

Forward hooks, there for one call only: the model itself is never changed, and a matrix beside which
nothing was written is computed by nobody but itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from nestling.hf.delta import Form
from nestling.hf.plan import Slot
from nestling.memory.state import Weights
from nestling.shapes import Tensor


class Trace(NamedTuple):
    """What a matrix read and made: ``(B, T, in)`` and ``(B, T, out)``."""

    key: Tensor
    out: Tensor


@dataclass(frozen=True, kw_only=True)
class Written:
    """What is written beside a model's matrices.

    Attributes:
        form: that it is kept in.
        slots: by the path of their module.
        weights: of every slot; those without any are not multiplied.
        batch: rows.
    """

    form: Form
    slots: Mapping[str, Sequence[Slot]]
    weights: Mapping[Slot, Weights]
    batch: int


@contextmanager
def adapted(
    model: nn.Module, written: Written, tape: dict[str, Trace] | None = None
) -> Iterator[None]:
    """Within it, the model computes with what is written.

    Args:
        model: read only.
        written: beside which matrices, and what.
        tape: where every matrix leaves its trace, if its error is wanted.
    """
    hooks = []
    try:
        for path, slots in written.slots.items():
            if tape is None and not any(slot in written.weights for slot in slots):
                continue
            hook = partial(_hook, written, slots, tape, path)
            hooks.append(model.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _hook(
    written: Written, slots: Sequence[Slot], tape: dict[str, Trace] | None, path: str,
    module: nn.Module, args: Any, out: Tensor,
) -> Tensor:  # fmt: skip
    key: Tensor = args[0]
    shape = out.shape
    if key.dim() == 2:  # some models fold rows and tokens into one axis
        key, out = (x.reshape(written.batch, -1, x.shape[-1]) for x in (key, out))
    for slot in slots:
        weights = written.weights.get(slot)
        if weights is not None:
            out = _added(out, slot, written.form.product(*_same_rows(key, slot, weights)))
    if tape is not None:
        if not out.requires_grad:  # nothing is trained, but its error is asked for
            out = out.detach().requires_grad_()
        tape[path] = Trace(key, out)
    return out.reshape(shape)


def _same_rows(key: Tensor, slot: Slot, weights: Weights) -> tuple[Tensor, Weights]:
    """Inputs of the slot, and its weights for as many rows: beams share those of their text."""
    start, stop = slot.rows
    if (start, stop) != (0, key.shape[-1]):
        key = key[..., start:stop]
    batch = next(iter(weights.values())).shape[0]
    if key.shape[0] == batch:
        return key, weights
    times = key.shape[0] // batch
    return key, {name: W.repeat_interleave(times, dim=0) for name, W in weights.items()}


def _added(out: Tensor, slot: Slot, product: Tensor) -> Tensor:
    if slot.columns == ((0, out.shape[-1]),):
        return out + product
    return out.index_add(-1, columns_of(slot, out.device), product)


def columns_of(slot: Slot, device: torch.device) -> Tensor:
    """Indices of the outputs that belong to a slot."""
    return torch.cat([torch.arange(*span, device=device) for span in slot.columns])
