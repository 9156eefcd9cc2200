"""Memories of gradients: what an optimizer keeps, how it is written, and what it answers.

    M <- keep M (I - delta ĝ^T ĝ) + gain * (sum of g over the period)        NL Eq. 9-12, 48-49, 75
    O <- output(M)                                            at the period's end, held in between

Momentum is the memory that minimises ``-<M, g>`` by gradient descent with decay (NL Eq. 9-12):
the gradient is its key, and its answer is itself. ``delta`` erases what it holds under the key
first, as the delta rule does; ``output`` is the map of NL Eq. 52.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from nestling.memory import newton_schulz
from nestling.optim.checks import check_at_least, check_share, check_whole
from nestling.optim.clock import Clock
from nestling.optim.sharded import parts, replicated, whole
from nestling.shapes import Tensor

States = Sequence[dict[str, Tensor]]
"""For each parameter, what its memories hold, by name."""
DTYPES = ("auto", "bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Orthogonal:
    """Output map ``NewtonSchulz(M)`` (NL Eq. 52), all matrices of one shape in one batch.

    Args:
        steps: of the iteration, at least 1.
        dtype: to compute in. ``"auto"``: bfloat16 on an accelerator, as ``torch.optim.Muon``, and
            float32 on a CPU, where that is several times as fast.
        signs: of the signs of M instead of M (AdaMuon).

    Raises:
        ValueError: naming what does not fit.

    >>> Orthogonal()([torch.diag(torch.tensor([4.0, 0.5]))])[0].diagonal().abs() > 0.6
    tensor([True, True])
    """

    steps: int = 5
    dtype: str = "auto"
    signs: bool = False

    def __post_init__(self) -> None:
        check_whole("steps", self.steps)
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {list(DTYPES)}, got {self.dtype!r}")

    def __call__(self, M: Sequence[Tensor]) -> list[Tensor]:
        """One result for each matrix, or batch of matrices, of one shape, in their dtype."""
        full = [whole(one) for one in M]
        batch = torch.stack(full) if len(full) > 1 else full[0]
        if self.signs:
            batch = batch.sign()
        made = newton_schulz(batch, steps=self.steps, dtype=self._dtype(batch)).to(batch.dtype)
        return parts(list(made) if len(full) > 1 else [made], M)

    def _dtype(self, tensor: Tensor) -> torch.dtype:
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return tensor.dtype if tensor.device.type == "cpu" else torch.bfloat16


NEWTON_SCHULZ = Orthogonal()


@dataclass(frozen=True, kw_only=True)
class GradientMemory:
    """A linear memory of gradients: one number for each weight.

    Args:
        name: of its state.
        keep: fraction kept at each write, in [0, 1]; 1 never forgets.
        gain: of each gradient that is written; ``1 - keep`` makes an average.
        period: steps between two writes; gradients in between are added up, and what it answers
            is held.
        weight: of its answer in the sum of all memories'.
        nesterov: answer as if the newest gradient had been written once more.
        delta: how much of what it holds under the gradient is erased at each write (NL Eq. 48-49).
        normalized: take ``ĝ = g / |g|`` there, so that ``delta`` has no unit; ``False``: ``g``
            itself, as printed.
        output: map of its answer, or ``None``.

    Raises:
        ValueError: naming what does not fit.

    >>> memory, state = GradientMemory(keep=0.5, gain=1.0), [{"momentum": torch.zeros(2)}]
    >>> for t in (1, 2):
    ...     memory.write(state, [torch.tensor([2.0, 0.0])], Clock(t))
    >>> memory.read(state, [torch.zeros(2)], Clock(2))
    [tensor([3., 0.])]
    """

    name: str = "momentum"
    keep: float = 0.9
    gain: float = 1.0
    period: int = 1
    weight: float = 1.0
    nesterov: bool = False
    delta: float = 0.0
    normalized: bool = True
    output: Orthogonal | None = None

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_whole("period", self.period)
        for name in ("gain", "weight", "delta"):
            check_at_least(name, getattr(self, name))
        if self.period > 1 and (self.delta or self.nesterov):
            raise ValueError("period: a memory with delta or nesterov is written at every step")

    @property
    def held(self) -> str:
        """Name of the answer that is held, where it is."""
        return f"{self.name}_output"

    @property
    def average(self) -> bool:
        """Whether what it holds is a weighted mean of gradients."""
        return self.keep < 1 and abs(self.keep + self.gain * self.period - 1) < 1e-9

    def entries(self, shape: torch.Size) -> dict[str, tuple[int, ...]]:
        """Names and shapes of its state."""
        return {key: tuple(shape) for key in (self.name, *([self.held] * (self.period > 1)))}

    def write(self, states: States, keys: Sequence[Tensor], clock: Clock) -> None:
        """Take one gradient for each parameter.

        In a period the memory itself grows: nothing reads it before the end, so the sum of the
        period's gradients needs no place of its own.
        """
        M = [state[self.name] for state in states]
        if self.delta:
            self._erase(M, keys)
        elif self.average and self.period == 1:
            torch._foreach_lerp_(M, list(keys), self.gain)
            return
        elif clock.on_device:
            for m, begins in zip(M, clock.begin_masks(self.period), strict=True):
                m.mul_(1 - begins.to(m.dtype) * (1 - self.keep))
        elif clock.begins(self.period) and self.keep != 1:
            torch._foreach_mul_(M, self.keep)
        torch._foreach_add_(M, list(keys), alpha=self.gain)

    def read(self, states: States, keys: Sequence[Tensor], clock: Clock) -> list[Tensor]:
        """What it answers, for each parameter."""
        M = [state[self.name] for state in states]
        if self.period == 1:
            if self.nesterov and self.average:
                M = list(torch._foreach_lerp(list(keys), M, self.keep))
            elif self.nesterov:
                M = list(torch._foreach_mul(M, self.keep))
                torch._foreach_add_(M, list(keys), alpha=self.gain)
            return M if self.output is None else self.output(M)
        held = [state[self.held] for state in states]
        if clock.on_device:
            made = M if self.output is None else self.output(M)
            for old, new, ends in zip(held, made, clock.end_masks(self.period), strict=True):
                old.copy_(torch.where(ends, new, old))
        elif clock.ends(self.period):
            # one by one: DTensors have no copy of lists
            for old, new in zip(held, M if self.output is None else self.output(M), strict=True):
                old.copy_(new)
        return held

    def _erase(self, M: Sequence[Tensor], keys: Sequence[Tensor]) -> None:
        """``M <- keep M - delta (M ĝ^T) ĝ``; a vector is a matrix with one row."""
        for m, g in zip(M, keys, strict=True):
            old, key = _matrix(whole(m)), _matrix(whole(g))
            few_rows = key.shape[-2] <= key.shape[-1]
            held = (old @ key.mT) @ key if few_rows else old @ (key.mT @ key)
            if self.normalized:
                size = key.square().sum(dim=(-2, -1), keepdim=True)
                held = held / size.clamp(min=torch.finfo(size.dtype).tiny)
            new = torch.add(self.keep * old, held, alpha=-self.delta)
            m.copy_(parts([new.reshape(m.shape)], [m])[0])

    @property
    def by_shape(self) -> bool:
        """Whether its output map works on batches of one shape."""
        return self.output is not None

    @property
    def rule(self) -> str:
        """How it is written, for tables."""
        said = "Keep" if self.keep == 1 else f"Decay({self.keep:g})"
        if self.delta:
            said = f"Delta({said})"
        return " x ".join(["DotProduct", said, *(["NewtonSchulz"] if self.output else [])])


@dataclass(frozen=True, kw_only=True)
class SecondMoment:
    """``V <- keep V + gain x^2``, by whose root something is divided.

    Adam is the memory that minimises ``sum_t (V - g_t^2)^2`` for every weight by itself
    (NL Eq. 101-105).

    Args:
        keep: fraction kept, in [0, 1].
        gain: of each square; ``1 - keep`` makes an average, ``keep=1`` is M3 as printed.
        of: the squares of the ``"gradient"``, or of the ``"update"`` that is divided (AdaMuon).
        at: divide the ``"update"``, or the ``"key"``, before it is written (NL Eq. 46-47).
        eps: added to the root.
        damping: this share of the root of the mean of V, over a matrix, is added too. An orthogonal
            step is as large where gradients are almost zero as elsewhere: divided by their root
            alone, such places take nearly all of it (reading R11).

    Raises:
        ValueError: naming what does not fit.
    """

    keep: float = 0.95
    gain: float = 0.05
    of: Literal["gradient", "update"] = "gradient"
    at: Literal["update", "key"] = "update"
    eps: float = 1e-8
    damping: float = 0.0

    name = "second_moment"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        check_at_least("gain", self.gain)
        check_at_least("eps", self.eps)
        check_at_least("damping", self.damping)
        if self.of not in ("gradient", "update"):
            raise ValueError(f"of: expected 'gradient' or 'update', got {self.of!r}")
        if self.at not in ("update", "key"):
            raise ValueError(f"at: expected 'update' or 'key', got {self.at!r}")
        if (self.of, self.at) == ("update", "key"):
            raise ValueError("of: a key is divided by what is known of gradients, got 'update'")

    def divide(
        self, states: States, what: Sequence[Tensor], of: Sequence[Tensor], clock: Clock | None
    ) -> list[Tensor]:
        """``what / (sqrt(V) + eps)``, with V the newest; ``clock`` corrects its beginning."""
        V = [state[self.name] for state in states]
        if self.keep != 1:
            torch._foreach_mul_(V, self.keep)
        torch._foreach_addcmul_(V, list(of), list(of), self.gain)
        roots = list(torch._foreach_sqrt(V))
        if clock is not None:
            mass = clock.mass(self.keep)
            if isinstance(mass, list):
                roots = [root / one.sqrt() for root, one in zip(roots, mass, strict=True)]
            else:
                torch._foreach_div_(roots, mass**0.5)
        torch._foreach_add_(roots, self.eps)
        if self.damping:
            roots = [torch.add(root, _typical(root), alpha=self.damping) for root in roots]
        return list(torch._foreach_div(list(what), roots))


def _typical(root: Tensor) -> Tensor:
    """Root of the mean square of a vector, or of each matrix of a batch."""
    axes = (-2, -1) if root.ndim > 1 else None
    return replicated(root.square().mean(dim=axes, keepdim=True)).sqrt()


def _matrix(tensor: Tensor) -> Tensor:
    """With rows and columns: a vector is one row, filters are one row for each output."""
    if tensor.ndim > 3:
        return tensor.flatten(1)
    return tensor if tensor.ndim > 1 else tensor.reshape(1, -1)


Entries = Mapping[str, tuple[int, ...]]
