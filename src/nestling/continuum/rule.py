"""The error part f of an optimizer, for fast weights with a batch axis (NL Eq. 71).

    theta <- theta - eta F(1/C sum over the period of p_t^T f_t)

Every matrix of a block has an input ``p_t``, an output ``h_t = p_t M`` and an error ``e_t``, the
derivative of a loss with respect to ``h_t``. A rule says what ``f_t`` is for a token, and what F
makes of the mean over a period. Its moments are a value that the state carries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from nestling.shapes import Float, Tensor

Moments = Mapping[str, Tensor]


class Surprise(NamedTuple):
    """What a period's error of one matrix is made of.

    Attributes:
        key: the matrix's input, ``(B, C, I)``.
        held: its output, ``(B, C, O)``.
        error: the derivative of the loss with respect to ``held``, ``(B, C, O)``.
    """

    key: Tensor
    held: Tensor
    error: Tensor


@runtime_checkable
class ErrorRule(Protocol):
    """What an optimizer makes of errors, as pure functions.

    Attributes:
        moments: names of what it remembers from period to period, each of the weights' shape.
        plain: whether :meth:`error` is the error itself, whatever the step size.
    """

    moments: ClassVar[tuple[str, ...]]
    plain: ClassVar[bool]

    def error(self, surprise: Surprise, eta: Tensor) -> Float[Tensor, "B C O"]:
        """``f_t`` of every token."""
        ...

    def direction(
        self, mean: Float[Tensor, "B I O"], moments: Moments, age: Tensor
    ) -> tuple[Float[Tensor, "B I O"], Moments]:
        """``F`` and the new moments; ``age`` is ``(B,)``, how often they have moved before."""
        ...


@dataclass(frozen=True)
class GradientDescent:
    """``f_t = e_t``, ``F(G) = G``.

    >>> import torch
    >>> mean = torch.ones(1, 2, 2)
    >>> direction, _ = GradientDescent().direction(mean, {}, torch.zeros(1))
    >>> bool((direction == mean).all())
    True
    """

    moments: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[bool] = True

    def error(self, surprise: Surprise, eta: Tensor) -> Tensor:
        """The error itself."""
        return surprise.error

    def direction(self, mean: Tensor, moments: Moments, age: Tensor) -> tuple[Tensor, Moments]:
        """The mean gradient."""
        return mean, moments


@dataclass(frozen=True)
class HeavyBall:
    """Momentum over periods: ``S <- beta S + G``, ``F = S``.

    Args:
        beta: fraction of the momentum kept from period to period, in [0, 1).

    Raises:
        ValueError: if ``beta`` is outside of [0, 1).

    >>> import torch
    >>> rule, G = HeavyBall(0.5), torch.ones(1, 1, 1)
    >>> _, moments = rule.direction(G, {"momentum": torch.zeros(1, 1, 1)}, torch.zeros(1))
    >>> float(rule.direction(G, moments, torch.ones(1))[0])
    1.5
    """

    beta: float = 0.9

    moments: ClassVar[tuple[str, ...]] = ("momentum",)
    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_fraction("beta", self.beta)

    def error(self, surprise: Surprise, eta: Tensor) -> Tensor:
        """The error itself."""
        return surprise.error

    def direction(self, mean: Tensor, moments: Moments, age: Tensor) -> tuple[Tensor, Moments]:
        """The momentum after this period."""
        momentum = self.beta * moments["momentum"] + mean
        return momentum, {"momentum": momentum}


@dataclass(frozen=True)
class Adam:
    """Adam over periods, with bias correction (Kingma and Ba 2015).

        m <- b1 m + (1 - b1) G,   v <- b2 v + (1 - b2) G * G,   F = m' / sqrt(v' + eps^2)

    ``eps`` stands inside the root, where torch has it outside: the outer loop differentiates
    through the root, and an element without any error must not have an infinite slope.

    Args:
        beta1: fraction of ``m`` kept, in [0, 1).
        beta2: fraction of ``v`` kept, in [0, 1).
        eps: positive.

    Raises:
        ValueError: naming the argument that is out of range.

    >>> import torch
    >>> zero = torch.zeros(1, 1, 1)
    >>> G = torch.full((1, 1, 1), -3.0)
    >>> F, _ = Adam().direction(G, {"first": zero, "second": zero}, torch.zeros(1))
    >>> round(float(F), 4)
    -1.0
    """

    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8

    moments: ClassVar[tuple[str, ...]] = ("first", "second")
    plain: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_fraction("beta1", self.beta1)
        _check_fraction("beta2", self.beta2)
        if not self.eps > 0:
            raise ValueError(f"eps: expected a positive number, got {self.eps}")

    def error(self, surprise: Surprise, eta: Tensor) -> Tensor:
        """The error itself."""
        return surprise.error

    def direction(self, mean: Tensor, moments: Moments, age: Tensor) -> tuple[Tensor, Moments]:
        """The corrected first moment over the root of the second."""
        first = self.beta1 * moments["first"] + (1 - self.beta1) * mean
        second = self.beta2 * moments["second"] + (1 - self.beta2) * mean.square()
        steps = (age + 1).to(device=mean.device, dtype=mean.dtype)[:, None, None]
        m, v = first / (1 - self.beta1**steps), second / (1 - self.beta2**steps)
        return m / (v + self.eps**2).sqrt(), {"first": first, "second": second}


@dataclass(frozen=True)
class DeltaGradientDescent:
    """``f_t = (e_t + h_t) / (1 + eta |p_t|^2)``: what the matrix held under the key is erased.

    NL Eq. 56-57 with the constant of appendix C for a key of any length. The period's end is the
    mean over its tokens of exact one-token solutions, so no step size overshoots.

    >>> import torch
    >>> one = Surprise(torch.ones(1, 1, 1), torch.ones(1, 1, 1), -torch.full((1, 1, 1), 3.0))
    >>> float(DeltaGradientDescent().error(one, torch.tensor(3.0)))    # 1 held, 3 wanted: -2 / 4
    -0.5
    """

    moments: ClassVar[tuple[str, ...]] = ()
    plain: ClassVar[bool] = False

    def error(self, surprise: Surprise, eta: Tensor) -> Tensor:
        """The error and what is held, over the length of the key."""
        length = surprise.key.square().sum(-1, keepdim=True)
        return (surprise.error + surprise.held) / (1 + eta * length)

    def direction(self, mean: Tensor, moments: Moments, age: Tensor) -> tuple[Tensor, Moments]:
        """The mean."""
        return mean, moments


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}")
