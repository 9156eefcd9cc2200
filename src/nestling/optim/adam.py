"""Adam as a memory of gradients divided by the root of another (NL Eq. 101-105)."""

from __future__ import annotations

from nestling.optim.checks import check_betas
from nestling.optim.gradient_memory import GradientMemory, SecondMoment
from nestling.optim.gradient_rule import GradientRule


def adam(
    betas: tuple[float, float] = (0.9, 0.999), *, eps: float = 1e-8, name: str = "Adam"
) -> GradientRule:
    """Adam as a memory of gradients divided by the root of another (NL Eq. 101-105).

        M <- b1 M + (1 - b1) g,   V <- b2 V + (1 - b2) g^2,   u = M' / (sqrt(V') + eps)

    The primes: divided by ``1 - b^t``.

    Raises:
        ValueError: naming what does not fit.

    >>> import torch
    >>> from nestling.optim.clock import Clock
    >>> step = adam().update([adam().zeros(torch.zeros(2))], [torch.tensor([2.0, -3.0])], Clock(1))
    >>> step[0].round(decimals=4)
    tensor([ 1., -1.])
    """
    check_betas(betas, 2)
    b1, b2 = betas
    return GradientRule(
        name=name,
        memories=(GradientMemory(name="momentum", keep=b1, gain=1 - b1),),
        second_moment=SecondMoment(keep=b2, gain=1 - b2, eps=eps),
        corrected=True,
    )
