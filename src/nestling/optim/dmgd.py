"""Deep momentum gradient descent: the momentum is a deep memory of gradients (NL Eq. 50, 52).

    m <- write(m; u, v),      W <- W - lr length(sigma(m(u)))

With a linear memory the answer is the memory itself, and with ``sigma`` = Newton-Schulz that is
Muon (NL Eq. 52).
"""

from __future__ import annotations

from typing import Literal

from nestling.memory import DotProduct, LinearMemory, MLPMemory
from nestling.memory.objective import Objective
from nestling.optim.checks import check_share
from nestling.optim.deep_memory import DeepGradientMemory
from nestling.optim.generalized import HANDLING, OTHERS, GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import GradientMemory, Orthogonal
from nestling.optim.gradient_rule import GradientRule, Length
from nestling.optim.intake import Params
from nestling.shapes import Tensor

MLP = MLPMemory(hidden=32)
SIMILARITY = DotProduct()


def dmgd(
    memory: MLPMemory | LinearMemory = MLP,
    *,
    objective: Objective = SIMILARITY,
    values: Literal["gradient", "ones"] = "gradient",
    beta: float = 0.9,
    eta: float = 1.0,
    output: Orthogonal | None = None,
    length: Length = "rms",
) -> GradientRule:
    """The rule of deep momentum.

    Args:
        memory: an MLP of its hidden size and depth; or the linear memory, written with the dot
            product, which is momentum.
        objective: what a write of the MLP minimises.
        values: what the MLP shall answer; see :class:`DeepGradientMemory`.
        beta: fraction kept.
        eta: step of a write of the MLP.
        output: sigma.
        length: of a step.

    Raises:
        ValueError: naming what does not fit.

    >>> dmgd(LinearMemory()).memories[0].rule, dmgd().memories[0].rule
    ('DotProduct x Decay(0.9)', 'DotProduct x Decay(0.9) on an MLP')
    """
    check_share("beta", beta, one=False)
    if isinstance(memory, LinearMemory):
        if objective != SIMILARITY:
            raise ValueError(f"objective: the linear memory takes DotProduct(), got {objective}")
        held = GradientMemory(keep=beta, gain=1 - beta, output=output)
    else:
        held = DeepGradientMemory(
            memory=memory, objective=objective, values=values, keep=beta, eta=eta, output=output
        )
    return GradientRule(name="DMGD", memories=(held,), length=length, matrices=True)


class DMGD(GeneralizedMomentum):
    """Deep momentum for the matrices of a model, Adam for the rest.

    Args:
        params: a model; or named parameters, parameters, groups.
        memory: an MLP, or the linear memory.
        lr: learning rate, of the size of AdamW's.
        beta, eta: see :func:`dmgd`; for its other arguments give ``GeneralizedMomentum`` a rule.
        weight_decay: of matrices.
        others: for what is no matrix.
        handling: of numbers.

    Raises:
        ValueError: naming what does not fit.
    """

    def __init__(
        self,
        params: Params,
        memory: MLPMemory | LinearMemory = MLP,
        *,
        lr: float | Tensor = 1e-3,
        beta: float = 0.9,
        eta: float = 1.0,
        weight_decay: float = 0.1,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
    ) -> None:
        rule = dmgd(memory, beta=beta, eta=eta)
        super().__init__(
            params, rule, lr=lr, weight_decay=weight_decay, others=others, handling=handling
        )
