"""What is written beside a pre-trained matrix, for every row of the batch, full or of low rank.

    y = h W + h dW,        dW <- kept dW - eta F(1/C sum over the period of h_t^T f_t)

W is never touched, dW starts at zero. Of low rank, ``dW = L R`` with ``r`` columns in L: every
write is followed by the best approximation of that rank, found without the whole matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from nestling.continuum.rule import ErrorRule, Moments
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor

SPARE = 4
"""Directions that a sum is searched in beyond its rank."""


@runtime_checkable
class Form(Protocol):
    """How a written matrix is kept; all functions are pure."""

    def start(self, batch: int, shape: tuple[int, int], like: Tensor) -> Weights:
        """Zero, without memory of its own."""
        ...

    def product(self, h: Float[Tensor, "B T I"], written: Weights) -> Float[Tensor, "B T O"]:
        """``h dW``."""
        ...

    def outer(self, key: Float[Tensor, "B T I"], f: Float[Tensor, "B T O"]) -> Weights:
        """``sum_t key_t^T f_t``."""
        ...

    def add(self, a: Weights, b: Weights, alpha: float = 1.0, beta: float = 1.0) -> Weights:
        """``alpha a + beta b``."""
        ...

    def direction(
        self, rule: ErrorRule, total: Weights, count: Tensor, moments: dict[str, Weights],
        age: Tensor,
    ) -> tuple[Weights, dict[str, Weights]]:  # fmt: skip
        """``F(total / count)`` and the new moments."""
        ...

    def squares(self, a: Weights, b: Weights) -> Tensor:
        """``sum (a - b)^2``."""
        ...


@dataclass(frozen=True)
class Full:
    """``dW`` itself, ``(B, in, out)``.

    >>> form = Full()
    >>> G = form.outer(torch.ones(1, 3, 2), torch.ones(1, 3, 4))
    >>> G["full"].shape, float(form.add(G, G, 1.0, -2.0)["full"].sum())
    (torch.Size([1, 2, 4]), -24.0)
    """

    def start(self, batch: int, shape: tuple[int, int], like: Tensor) -> Weights:
        """Zero."""
        return {"full": _zeros(batch, shape, like)}

    def product(self, h: Tensor, written: Weights) -> Tensor:
        """One batch of products."""
        return h @ written["full"].to(h.dtype)

    def outer(self, key: Tensor, f: Tensor) -> Weights:
        """One batch of products."""
        return {"full": _wide(key.mT @ f)}

    def add(self, a: Weights, b: Weights, alpha: float = 1.0, beta: float = 1.0) -> Weights:
        """Element by element."""
        one, other = a["full"], b["full"]
        return {"full": torch.add(one if alpha == 1 else alpha * one, other, alpha=beta)}

    def direction(
        self, rule: ErrorRule, total: Weights, count: Tensor, moments: dict[str, Weights],
        age: Tensor,
    ) -> tuple[Weights, dict[str, Weights]]:  # fmt: skip
        """The rule's own."""
        own: Moments = {name: value["full"] for name, value in moments.items()}
        mean = total["full"] / count.to(total["full"])
        found, after = rule.direction(mean, own, age)
        return {"full": found}, {name: {"full": value} for name, value in after.items()}

    def squares(self, a: Weights, b: Weights) -> Tensor:
        """Element by element."""
        return (a["full"] - b["full"]).square().sum()


@dataclass(frozen=True)
class LowRank:
    """``dW = L R``: ``(B, in, r)`` and ``(B, r, out)``.

    A sum of outer products is approximated by a randomised range finder with one power iteration
    (Halko, Martinsson, Tropp 2011), a sum of two approximations exactly by its ``r`` largest
    singular values. With ``r`` the smaller side of the matrix nothing is lost.

    >>> key, f, form = torch.randn(1, 5, 4), torch.randn(1, 5, 3), LowRank(3)
    >>> found = form.outer(key, f)
    >>> torch.allclose(found["left"] @ found["right"], key.mT @ f, atol=1e-4)
    True
    """

    rank: int

    def start(self, batch: int, shape: tuple[int, int], like: Tensor) -> Weights:
        """Zero."""
        rank = min(self.rank, *shape)
        return {
            "left": _zeros(batch, (shape[0], rank), like),
            "right": _zeros(batch, (rank, shape[1]), like),
        }

    def product(self, h: Tensor, written: Weights) -> Tensor:
        """Two thin products."""
        return (h @ written["left"].to(h.dtype)) @ written["right"].to(h.dtype)

    def outer(self, key: Tensor, f: Tensor) -> Weights:
        """The ``r`` largest directions, nearly, without the matrix that they belong to."""
        key, f = _wide(key), _wide(f)
        least = min(key.shape[-1], f.shape[-1])
        wide = min(self.rank + SPARE, least)
        draw = torch.Generator().manual_seed(0)
        sketch = torch.randn(f.shape[-1], wide, generator=draw, dtype=torch.float64).to(f)
        left = _basis(key.mT @ (f @ sketch))
        right = _basis(f.mT @ (key @ left))
        left = _basis(key.mT @ (f @ right))
        return _nearest(left, (key @ left).mT @ f, min(self.rank, least))

    def add(self, a: Weights, b: Weights, alpha: float = 1.0, beta: float = 1.0) -> Weights:
        """The best approximation of the sum.

        Raises:
            ValueError: if a factor is not finite, which has no approximation.
        """
        left = torch.cat([a["left"], b["left"]], dim=-1)
        right = torch.cat([alpha * a["right"], beta * b["right"]], dim=-2)
        return _nearest(left, right, a["left"].shape[-1])

    def direction(
        self, rule: ErrorRule, total: Weights, count: Tensor, moments: dict[str, Weights],
        age: Tensor,
    ) -> tuple[Weights, dict[str, Weights]]:  # fmt: skip
        """The mean: only rules without moments are let in."""
        return {**total, "right": total["right"] / count.to(total["right"])}, {}

    def squares(self, a: Weights, b: Weights) -> Tensor:
        """From products of the factors only."""
        left = torch.cat([a["left"], b["left"]], dim=-1)
        right = torch.cat([a["right"], -b["right"]], dim=-2)
        return ((left.mT @ left) * (right @ right.mT)).sum().clamp(min=0)


def _nearest(left: Tensor, right: Tensor, rank: int) -> dict[str, Tensor]:
    """The matrix of this rank that is nearest to a product, from its factors."""
    if not bool(left.isfinite().all() & right.isfinite().all()):
        raise ValueError("step_size: what is written is not finite; expected a smaller one")
    Q, R = torch.linalg.qr(left)
    P, S = torch.linalg.qr(right.mT)
    U, size, V = torch.linalg.svd(R @ S.mT, full_matrices=False)
    return {
        "left": Q @ U[..., :rank],
        "right": (size[..., :rank, None] * V[..., :rank, :]) @ P.mT,
    }


def _basis(x: Tensor) -> Tensor:
    return torch.linalg.qr(x).Q


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _zeros(batch: int, shape: tuple[int, int], like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return like.new_zeros((), dtype=dtype).expand(batch, *shape)
