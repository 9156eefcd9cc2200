"""Delta momentum: the gradient decides what is forgotten of the gradients before (NL Eq. 48-49).

    M <- M (keep I - delta ĝ^T ĝ) + gain g,      W <- W - lr M

What the momentum holds along the newest gradient is erased, the rest fades with ``keep``: the
delta rule in the place of the dot product. A vector is a matrix of one row:

    M <- keep M - delta (M . ĝ) ĝ + gain g
"""

from __future__ import annotations

from nestling.optim.checks import check_share
from nestling.optim.generalized import HANDLING, OTHERS, GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import GradientMemory, Orthogonal
from nestling.optim.gradient_rule import GradientRule, Length
from nestling.optim.intake import Params
from nestling.shapes import Tensor


def delta_momentum(
    *,
    beta: float = 0.9,
    delta: float = 1.0,
    normalized: bool = True,
    output: Orthogonal | None = None,
    length: Length = "plain",
) -> GradientRule:
    """Delta momentum's rule.

    Args:
        beta: fraction kept of what is not erased.
        delta: how much is erased; 0 is momentum.
        normalized: ``ĝ = g / |g|``; ``False``: ``ĝ = g``, as printed, which depends on the unit of
            the loss.
        output: map of the momentum, for matrices.
        length: of a step, for matrices.

    Raises:
        ValueError: naming what does not fit.

    >>> delta_momentum().memories[0].rule
    'DotProduct x Delta(Decay(0.9))'
    """
    check_share("beta", beta, one=False)
    memory = GradientMemory(keep=beta, gain=1.0, delta=delta, normalized=normalized, output=output)
    for_matrices = output is not None or length != "plain"
    return GradientRule(
        name="DeltaMomentum", memories=(memory,), length=length, matrices=for_matrices
    )


class DeltaMomentum(GeneralizedMomentum):
    """Delta momentum for every parameter: it stands where SGD with momentum stood.

    Args:
        params: a model, named parameters, parameters, or groups.
        lr: learning rate, of the size of SGD's.
        beta, delta, normalized: see :func:`delta_momentum`.
        weight_decay: of matrices.
        others: for what is no matrix; used only by rules for matrices.
        handling: of numbers.

    Raises:
        ValueError: naming what does not fit.

    >>> import torch
    >>> W = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = DeltaMomentum([W], lr=0.1)
    >>> for g in ([1.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
    ...     W.grad = torch.tensor(g)
    ...     optimizer.step()
    >>> optimizer.state[W]["momentum"]       # of the first two: 0.9 - 1 + 1, then times 0.9
    tensor([0.8100, 1.0000])
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float | Tensor = 1e-2,
        beta: float = 0.9,
        delta: float = 1.0,
        normalized: bool = True,
        weight_decay: float = 0.0,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
    ) -> None:
        rule = delta_momentum(beta=beta, delta=delta, normalized=normalized)
        super().__init__(
            params, rule, lr=lr, weight_decay=weight_decay, others=others, handling=handling
        )
