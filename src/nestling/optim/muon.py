"""Muon and AdaMuon: momentum with Newton-Schulz as its output map (NL Eq. 52)."""

from __future__ import annotations

from nestling.optim.checks import check_betas, check_share
from nestling.optim.generalized import HANDLING, OTHERS, GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import (
    NEWTON_SCHULZ,
    GradientMemory,
    Orthogonal,
    SecondMoment,
)
from nestling.optim.gradient_rule import GradientRule, Length
from nestling.optim.intake import Params
from nestling.shapes import Tensor


def muon(
    beta: float = 0.95,
    *,
    nesterov: bool = True,
    output: Orthogonal = NEWTON_SCHULZ,
    length: Length = "spectral",
) -> GradientRule:
    """Momentum with the output map of NL Eq. 52: Muon (Jordan et al. 2024).

        M <- b M + (1 - b) g,   u = NewtonSchulz(b M + (1 - b) g)

    Equal to ``torch.optim.Muon``: the common form is held against it. Where Muon is wanted, take
    torch's.

    Raises:
        ValueError: naming what does not fit.
    """
    check_share("beta", beta, one=False)
    memory = GradientMemory(keep=beta, gain=1 - beta, nesterov=nesterov, output=output)
    return GradientRule(name="Muon", memories=(memory,), length=length, matrices=True)


def adamuon(
    betas: tuple[float, float] = (0.95, 0.95), *, output: Orthogonal | None = None
) -> GradientRule:
    """Muon divided by its own second moment: AdaMuon (Si et al. 2025, arXiv 2507.11005).

        M <- b1 M + g,   O = NewtonSchulz(sign(M)),   V <- b2 V + (1 - b2) O^2
        W <- W - lr length(O / (sqrt(V) + eps))

    Raises:
        ValueError: naming what does not fit.

    >>> [memory.rule for memory in adamuon().memories]
    ['DotProduct x Decay(0.95) x NewtonSchulz']
    """
    check_betas(betas, 2)
    b1, b2 = betas
    memory = GradientMemory(keep=b1, gain=1.0, output=output or Orthogonal(signs=True))
    return GradientRule(
        name="AdaMuon",
        memories=(memory,),
        second_moment=SecondMoment(keep=b2, gain=1 - b2, of="update"),
        length="rms",
        matrices=True,
    )


class AdaMuon(GeneralizedMomentum):
    """AdaMuon for the matrices of a model, Adam for the rest.

    Args:
        params: a model; or named parameters, parameters, groups.
        lr: learning rate, of the size of AdamW's.
        betas: of the momentum and of the second moment.
        weight_decay: of matrices.
        others: for what is no matrix.
        handling: of numbers.

    Raises:
        ValueError: naming what does not fit.
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.1,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
    ) -> None:
        super().__init__(
            params, adamuon(betas), lr=lr, weight_decay=weight_decay, others=others,
            handling=handling,
        )  # fmt: skip
