"""How far each memory has moved between two states.

|M_after - M_before| / |M_before|
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nestling.levels import Component
from nestling.memory import flatten
from nestling.session.outline import owner_of
from nestling.session.readable import Readable
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Movement:
    """One memory between two states.

    Attributes:
        name: path in the model.
        moved: relative norm of the difference; ``None`` if it has another size now.
        bytes: its size before and after, if they differ.
    """

    name: str
    moved: float | None
    bytes: tuple[int, int] | None = None


@torch.no_grad()
def compare(model: Readable, before: Any, after: Any) -> list[Movement]:
    """Every memory that the model speaks of, and of the other layers whatever they carry.

    Args:
        model: both states are its own.
        before: the state that the norms are relative to.
        after: the other.

    >>> from nestling.models import build
    >>> model = build("titans", width=16, heads=2, layers=1)
    >>> start = model.initial_state(1)
    >>> _, state = model(torch.tensor([[1, 2, 3]]))
    >>> [(m.name, m.moved > 0) for m in compare(model, start, state)]
    [('blocks.0.mixer.memory', True)]
    """
    components = model.components()
    both = [_by_owner(components, state) for state in (before, after)]
    found = [
        Movement(name=name, moved=moved) for name, moved in model.liveness(before, after).items()
    ]
    spoken_of = {_layer(one.name) for one in found}
    for name in dict.fromkeys([*both[0], *both[1]]):
        old, new = (owners.get(name, []) for owners in both)
        holds = any(tensor.is_floating_point() and tensor.numel() for tensor in (*old, *new))
        if holds and _layer(name) not in spoken_of:
            moved = _moved(old, new)
            sizes = None if moved is not None else (_bytes(old), _bytes(new))
            found.append(Movement(name=name, moved=moved, bytes=sizes))
    return found


def _by_owner(components: Sequence[Component], state: Any) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {}
    for path, tensor in flatten(state).items():
        found.setdefault(owner_of(path, components), []).append(tensor)
    return found


def _moved(old: Sequence[Tensor], new: Sequence[Tensor]) -> float | None:
    if [tensor.shape for tensor in old] != [tensor.shape for tensor in new]:
        return None
    pairs = [(a.double(), b.double()) for a, b in zip(old, new, strict=True)
             if a.is_floating_point()]  # fmt: skip
    change = sum(float((b - a).square().sum()) for a, b in pairs)
    size = sum(float(a.square().sum()) for a, _ in pairs)
    return (change / size) ** 0.5 if size else float(change > 0)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
