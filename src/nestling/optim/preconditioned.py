"""Preconditioned momentum: what is written is P g (NL Eq. 46-47), or phi(g) (NL Eq. 51).

    M <- keep M + P g,      W <- W - lr M

P maps gradients to values of the memory. Two are here: the diagonal one of the second moment, and
the orthogonal one of Newton-Schulz; any function of a list of gradients of one shape is another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from nestling.optim.checks import check_betas
from nestling.optim.generalized import HANDLING, OTHERS, GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import NEWTON_SCHULZ, GradientMemory, Orthogonal, SecondMoment
from nestling.optim.gradient_rule import GradientRule
from nestling.optim.intake import Params
from nestling.shapes import Tensor

Map = Callable[[Sequence[Tensor]], Sequence[Tensor]]
P = Literal["second_moment", "orthogonal"] | Map


def preconditioned_momentum(
    by: P = "second_moment", *, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
) -> GradientRule:
    """Preconditioned momentum's rule.

    Args:
        by: ``"second_moment"``: ``P g = g / (sqrt(V) + eps)``, RMSprop with momentum;
            ``"orthogonal"``: ``P g = NewtonSchulz(g)``, which is ``(g g^T)^(-1/2) g``, for
            matrices; or a function of the gradients of one shape.
        betas: what is kept of the momentum and of the second moment.
        eps: added to the root.

    Raises:
        ValueError: naming what does not fit.

    >>> preconditioned_momentum().second_moment.at
    'key'
    """
    check_betas(betas, 2)
    memories = (GradientMemory(keep=betas[0], gain=1.0),)
    if by == "second_moment":
        V = SecondMoment(keep=betas[1], gain=1 - betas[1], at="key", eps=eps)
        return GradientRule(name="Preconditioned(V)", memories=memories, second_moment=V)
    if isinstance(by, str):
        if by != "orthogonal":
            raise ValueError(f"by: expected 'second_moment', 'orthogonal' or a map, got {by!r}")
        by = NEWTON_SCHULZ
    name = f"Preconditioned({getattr(by, '__name__', type(by).__name__)})"
    matrices = isinstance(by, Orthogonal)
    return GradientRule(name=name, memories=memories, key=by, matrices=matrices)


class PreconditionedMomentum(GeneralizedMomentum):
    """Momentum of preconditioned gradients.

    Args:
        params: a model, named parameters, parameters, or groups.
        by: P; see :func:`preconditioned_momentum`.
        lr: learning rate.
        betas: what is kept of the momentum and of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of matrices.
        others: for what is no matrix, where P is for matrices.
        handling: of numbers.

    Raises:
        ValueError: naming what does not fit.

    >>> import torch
    >>> W = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = PreconditionedMomentum([W], lambda g: [x.sign() for x in g], lr=0.5)
    >>> W.grad = torch.tensor([3.0, -1e-3])
    >>> optimizer.step()
    >>> W.detach()
    tensor([-0.5000,  0.5000])
    """

    def __init__(
        self,
        params: Params,
        by: P = "second_moment",
        *,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
    ) -> None:
        rule = preconditioned_momentum(by, betas=betas, eps=eps)
        super().__init__(
            params, rule, lr=lr, weight_decay=weight_decay, others=others, handling=handling
        )
