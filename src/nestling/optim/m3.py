"""M3, the multi-scale momentum Muon (NL Eq. 75, Algorithm 1): a continuum of two momenta.

    M1 <- b1 M1 + (1 - b1) g                                            at every step
    M2 <- b3 M2 + (1 - b3) mean of g over the last f steps              every f steps, else held
    V  <- b2 V + (1 - b2) g^2
    u  = (NewtonSchulz(b1 M1 + (1 - b1) g) + alpha NewtonSchulz(M2)) / (sqrt(V) + rms(sqrt(V)))
    W  <- W - lr length(u)

Where this is not what the paper prints, the printed form is an option, and both were measured
(reading R11, docs/optimizers.md):

- averages instead of sums that never decay (``sums=True``);
- the fast momentum answers as Muon's does, with the newest gradient counted once more
  (``nesterov=False``);
- the root is damped by its own size, for NewtonSchulz(M) is large where gradients are almost zero
  too, and divided by their root alone such weights take nearly all of the step (``damping=0``);
- a step has no unit, so that AdamW's learning rate fits; printed, its unit is ``1 / g``
  (``length="plain"``).
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from nestling.optim.checks import check_at_least, check_betas, check_whole
from nestling.optim.generalized import HANDLING, OTHERS, GeneralizedMomentum, Handling, Others
from nestling.optim.gradient_memory import NEWTON_SCHULZ, GradientMemory, Orthogonal, SecondMoment
from nestling.optim.gradient_rule import GradientRule, Length
from nestling.optim.intake import Params
from nestling.shapes import Tensor


def m3(
    *,
    betas: tuple[float, float, float] = (0.95, 0.95, 0.9),
    alpha: float = 0.2,
    frequency: int = 16,
    output: Orthogonal | None = NEWTON_SCHULZ,
    second_moment: Literal["gradient", "update"] | None = "gradient",
    damping: float = 1.0,
    nesterov: bool = True,
    sums: bool = False,
    length: Length = "rms",
) -> GradientRule:
    """M3's rule.

    Args:
        betas: of the fast momentum, the second moment, the slow momentum, as the paper numbers
            them; what is kept at each write.
        alpha: weight of the slow momentum; 0: there is none.
        frequency: steps between two writes of the slow momentum; in between it is held.
        output: ``None`` leaves both momenta as they are.
        second_moment: of what; AdaMuon takes that of the ``"update"``.
        damping: of the second moment of gradients, see :class:`SecondMoment`; 0 is as printed.
            That of the update needs none.
        nesterov: of the fast momentum; ``False`` is as printed.
        sums: nothing fades and betas are the weights of what is written, as printed.
        length: of a step.

    Raises:
        ValueError: naming what does not fit.

    >>> [(memory.name, memory.period, memory.rule) for memory in m3(frequency=8).memories]
    [('fast', 1, 'DotProduct x Decay(0.95) x NewtonSchulz'),
     ('slow', 8, 'DotProduct x Decay(0.9) x NewtonSchulz')]
    """
    check_betas(betas, 3)
    check_at_least("alpha", alpha)
    check_whole("frequency", frequency)
    b1, b2, b3 = betas
    fast = GradientMemory(name="fast", keep=1.0 if sums else b1, gain=b1 if sums else 1 - b1,
                          nesterov=nesterov, output=output)  # fmt: skip
    slow = GradientMemory(
        name="slow", keep=1.0 if sums else b3, gain=b3 if sums else (1 - b3) / frequency,
        period=frequency, weight=alpha, output=output,
    )  # fmt: skip
    V = None
    if second_moment is not None:
        V = SecondMoment(
            keep=1.0 if sums else b2, gain=b2 if sums else 1 - b2, of=second_moment,
            damping=damping if second_moment == "gradient" else 0.0,
        )  # fmt: skip
    memories = (fast, slow) if alpha else (fast,)
    return GradientRule(name="M3", memories=memories, second_moment=V, length=length, matrices=True)


m3_as_printed = partial(m3, sums=True, nesterov=False, damping=0.0, length="plain")
"""Algorithm 1 to the letter: its learning rate has the unit of the gradient."""


class M3(GeneralizedMomentum):
    """M3 for the matrices of a model, Adam for the rest: write it where AdamW stood.

    Args:
        params: a model; or named parameters, parameters, groups.
        lr: learning rate, of the size of AdamW's.
        betas, alpha, frequency: see :func:`m3`; for its other arguments give
            ``GeneralizedMomentum`` a rule.
        weight_decay: of matrices.
        others: for what is no matrix.
        handling: of numbers.

    Raises:
        ValueError: naming what does not fit.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
    >>> optimizer = M3(model, lr=1e-2)
    >>> model(torch.randn(4, 8)).square().mean().backward()
    >>> optimizer.step()
    >>> optimizer
    M3 (
      M3: 1 parameters, 64 numbers, lr 0.01, weight decay 0.1
      Adam: 3 parameters, 24 numbers, lr 0.01, weight decay 0
    )
    """

    def __init__(
        self,
        params: Params,
        *,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.95, 0.95, 0.9),
        alpha: float = 0.2,
        frequency: int = 16,
        weight_decay: float = 0.1,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
    ) -> None:
        rule = m3(betas=betas, alpha=alpha, frequency=frequency)
        super().__init__(
            params, rule, lr=lr, weight_decay=weight_decay, others=others, handling=handling
        )
