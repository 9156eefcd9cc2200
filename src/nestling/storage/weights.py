"""Weights and random number generators as tensors by name, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from nestling.shapes import Tensor


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
