"""The state of a memory as an explicit value, and the tokens that write and read it.

A memory never stores anything inside a module: its weights, its momentum, the anchor of the chunk
that is still open and the clock travel together in a :class:`MemoryState` that a scan takes and
returns. Nothing is written in place, so a state may be kept, forked or rolled back by keeping a
reference to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch

from nestling.shapes import Tensor

Weights = Mapping[str, Tensor]
TokensT = TypeVar("TokensT", bound="Timeline")


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Tensors that share a time axis: they are cut and joined together."""

    k: Tensor

    vectors: ClassVar[frozenset[str]] = frozenset({"k", "v", "q"})

    @property
    def length(self) -> int:
        """Number of tokens T."""
        return self.k.shape[-2]

    def time_axis(self, name: str) -> int:
        """Where time runs in a field: vectors have their features behind it."""
        return -2 if name in self.vectors else -1

    def between(self: TokensT, start: int, stop: int) -> TokensT:
        """Tokens ``start:stop``."""
        return self._each(lambda _, x, axis: x.narrow(axis, start, stop - start))

    def split(self: TokensT, sizes: Sequence[int]) -> list[TokensT]:
        """Consecutive parts; one operation, so that their gradients are joined only once."""
        parts = {
            field.name: torch.split(value, list(sizes), dim=self.time_axis(field.name))
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return [
            dataclasses.replace(self, **{name: part[i] for name, part in parts.items()})
            for i in range(len(sizes))
        ]

    @staticmethod
    def join(parts: Sequence[TokensT]) -> TokensT:
        """Concatenate in time."""
        rest = parts[1:]
        return parts[0]._each(
            lambda name, x, axis: torch.cat([x, *(getattr(p, name) for p in rest)], dim=axis)
        )

    def _each(self: TokensT, function: Callable[[str, Tensor, int], Tensor]) -> TokensT:
        values = {
            field.name: function(field.name, value, self.time_axis(field.name))
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None
        }
        return dataclasses.replace(self, **values)


@dataclass(frozen=True, kw_only=True)
class Tokens(Timeline):
    """What one scan feeds to a memory: keys, values, queries and the gates of each token.

    Attributes:
        k: keys, ``(B, H, T, K)``. DGD assumes ``|k| <= 1`` (NL Eq. 57); the caller normalises.
        v: values, ``(B, H, T, V)``.
        q: queries, ``(B, H, T, K)``; ``None`` writes without reading.
        eta: step size of the write, ``(B, H, T)``.
        alpha: fraction kept, in [0, 1], ``(B, H, T)``; ``None`` keeps everything.
        beta: fraction of the momentum kept, in [0, 1], ``(B, H, T)``; needed by ``Momentum``.
        mask: ``(B, T)`` bool, False where a token is padding: it neither writes nor moves a clock.

    >>> import torch
    >>> Tokens(k=torch.zeros(2, 1, 5, 4), v=torch.zeros(2, 1, 5, 3)).length
    5
    """

    k: Tensor
    v: Tensor
    q: Tensor | None = None
    eta: Tensor | None = None
    alpha: Tensor | None = None
    beta: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class GatedTokens(Timeline):
    """Tokens with every gate present, as the engines take them; padded ones are idle.

    Where ``mask`` is False, ``eta`` is 0 and ``alpha`` and ``beta`` are 1.
    """

    k: Tensor
    v: Tensor
    q: Tensor | None = None
    eta: Tensor
    alpha: Tensor
    beta: Tensor
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class MemoryState:
    """All that a memory knows: a value with a batch axis, never written in place.

    Attributes:
        weights: the memory itself, name to ``(B, H, in, out)``. A read is ``q @ weights``
            (rows are tokens; the paper's matrices are the transposes, reading R1).
        momentum: same names and shapes; empty without momentum.
        anchor: the weights at the start of the open chunk, where all gradients of that chunk are
            taken (NL Eq. 90); ``None`` when a chunk is about to start.
        initial: the learned initial memory that ``DecayToInitial`` returns to; ``None`` means
            the weights that the first scan starts from.
        position: ``(B,)`` int64 on the CPU, tokens already written into the open chunk;
            ``None`` means zero everywhere.

    >>> import torch
    >>> MemoryState(weights={"w": torch.zeros(2, 1, 4, 3)}).batch
    2
    """

    weights: Weights
    momentum: Weights = field(default_factory=dict)
    anchor: Weights | None = None
    initial: Weights | None = None
    position: Tensor | None = None

    @property
    def batch(self) -> int:
        """Size of the batch axis B."""
        return next(iter(self.weights.values())).shape[0]


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Apply ``function`` to every tensor of a nested state and return the new state.

    States are made of dataclasses, mappings, tuples and lists; everything else is left alone.

    >>> import torch
    >>> state = MemoryState(weights={"w": torch.ones(1, 1, 2, 2)})
    >>> float(map_tensors(lambda t: 3 * t, state).weights["w"].sum())
    12.0
    """
    if isinstance(value, Tensor):
        return function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: map_tensors(function, getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **fields)
    if isinstance(value, Mapping):
        return {name: map_tensors(function, item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def detach(state: Any) -> Any:
    """The same state without its history: gradients do not flow further back.

    >>> import torch
    >>> state = MemoryState(weights={"w": torch.ones(1, 1, 2, 2, requires_grad=True)})
    >>> detach(state).weights["w"].requires_grad
    False
    """
    return map_tensors(lambda tensor: tensor.detach(), state)


def flatten(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state by its path, for saving.

    >>> import torch
    >>> sorted(flatten(MemoryState(weights={"w": torch.ones(1, 1, 2, 2)})))
    ['weights.w']
    """
    if isinstance(state, Tensor):
        return {prefix: state}
    found: dict[str, Tensor] = {}
    for name, item in children(state):
        found.update(flatten(item, f"{prefix}.{name}" if prefix else name))
    return found


def unflatten(template: Any, tensors: Mapping[str, Tensor], prefix: str = "") -> Any:
    """Rebuild a state saved by :func:`flatten`, in the structure of ``template``.

    Fields that are ``None`` or empty in the template but present in ``tensors`` are filled: a
    chunk may be open in the saved state and not in a fresh one.

    Raises:
        ValueError: naming the path, if a tensor of the template is missing in ``tensors``.

    >>> import torch
    >>> state = MemoryState(weights={"w": torch.ones(1, 1, 2, 2)})
    >>> unflatten(state, {"weights.w": torch.zeros(1, 1, 2, 2)}).weights["w"].sum()
    tensor(0.)
    """
    if isinstance(template, Tensor):
        if prefix not in tensors:
            raise ValueError(f"tensors: the saved state has no entry {prefix!r}")
        return tensors[prefix]
    if template is None or (isinstance(template, Mapping) and not template):
        if prefix in tensors:
            return tensors[prefix]
        inner = {
            path[len(prefix) + 1 :]: tensor
            for path, tensor in tensors.items()
            if path.startswith(prefix + ".")
        }
        return inner or template
    items = {
        name: unflatten(item, tensors, f"{prefix}.{name}" if prefix else name)
        for name, item in children(template)
    }
    if dataclasses.is_dataclass(template) and not isinstance(template, type):
        return dataclasses.replace(template, **items)
    if isinstance(template, Mapping):
        return items
    if isinstance(template, tuple | list):
        return type(template)(items.values())
    return template


def children(value: Any) -> list[tuple[str, Any]]:
    """The parts of a nested state by the names that :func:`flatten` gives them; none of a tensor.

    >>> children({"a": 1, "b": (2,)}), children((3,))
    ([('a', 1), ('b', (2,))], [('0', 3)])
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple | list):
        return [(str(index), item) for index, item in enumerate(value)]
    return []
