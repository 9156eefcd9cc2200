"""Inner objectives: what a memory minimises when it writes, L(M(k); v) (NL Def. 1, section 5).

An objective is known to the engine only through its gradient with respect to the memory's
prediction ``p = M(k)``; the value ``v`` is a constant of the inner problem, and the outer loop
differentiates through both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nestling.shapes import Float, Tensor


@runtime_checkable
class Objective(Protocol):
    """How far a prediction is from its value."""

    def loss(self, p: Float[Tensor, "... V"], v: Float[Tensor, "... V"]) -> Float[Tensor, ...]:
        """The objective itself, summed over the value axis."""
        ...

    def gradient(
        self, p: Float[Tensor, "... V"], v: Float[Tensor, "... V"]
    ) -> Float[Tensor, "... V"]:
        """The derivative of :meth:`loss` with respect to ``p``."""
        ...


@dataclass(frozen=True)
class DotProduct:
    """Dot-product similarity ``-<M(k), v>``: Hebbian writing (NL Eq. 6, linear attention).

    >>> import torch
    >>> DotProduct().gradient(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([-3.])
    """

    def loss(self, p: Tensor, v: Tensor) -> Tensor:
        """``-sum p v``."""
        return -(p * v).sum(-1)

    def gradient(self, p: Tensor, v: Tensor) -> Tensor:
        """``-v``, whatever the memory already predicts."""
        return -v.expand_as(p)


@dataclass(frozen=True)
class L2:
    """Half the squared error ``1/2 |M(k) - v|^2``: the delta rule.

    >>> import torch
    >>> L2().gradient(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([-2.])
    """

    def loss(self, p: Tensor, v: Tensor) -> Tensor:
        """``1/2 sum (p - v)^2``."""
        return 0.5 * (p - v).square().sum(-1)

    def gradient(self, p: Tensor, v: Tensor) -> Tensor:
        """``p - v``."""
        return p - v


@dataclass(frozen=True)
class Lp:
    """``1/p sum |M(k) - v|^p``; ``Lp(2)`` is :class:`L2`.

    Args:
        p: exponent, at least 1. Below 2 its second derivative is unbounded at zero error.

    Raises:
        ValueError: if ``p`` is below 1.

    >>> import torch
    >>> Lp(3.0).gradient(torch.tensor([1.0]), torch.tensor([3.0]))
    tensor([-4.])
    """

    p: float = 3.0

    def __post_init__(self) -> None:
        if not self.p >= 1:
            raise ValueError(f"p: expected an exponent >= 1, got {self.p}")

    def loss(self, p: Tensor, v: Tensor) -> Tensor:
        """``1/p sum |p - v|^p``."""
        return (p - v).abs().pow(self.p).sum(-1) / self.p

    def gradient(self, p: Tensor, v: Tensor) -> Tensor:
        """``sign(p - v) |p - v|^(p - 1)``, element by element."""
        error = p - v
        return error.sign() * error.abs().pow(self.p - 1)


@dataclass(frozen=True)
class Huber:
    """Element-wise Huber loss: L2 up to an error of ``delta``, linear beyond it.

    The same function as ``torch.nn.functional.huber_loss``. It bounds what a single surprising
    token can write.

    Args:
        delta: the error at which the loss turns linear, positive.

    Raises:
        ValueError: if ``delta`` is not positive.

    >>> import torch
    >>> Huber(0.5).gradient(torch.tensor([1.0, 0.1]), torch.tensor([3.0, 0.0]))
    tensor([-0.5000,  0.1000])
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"delta: expected a positive number, got {self.delta}")

    def loss(self, p: Tensor, v: Tensor) -> Tensor:
        """``1/2 e^2`` where ``|e| < delta``, else ``delta (|e| - delta / 2)``."""
        size = (p - v).abs()
        quadratic = size.clamp(max=self.delta)
        return (0.5 * quadratic.square() + self.delta * (size - quadratic)).sum(-1)

    def gradient(self, p: Tensor, v: Tensor) -> Tensor:
        """``p - v``, clamped to ``[-delta, delta]``."""
        return (p - v).clamp(-self.delta, self.delta)
