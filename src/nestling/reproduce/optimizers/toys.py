"""What the toy problems share: optimizers with a free number, and many runs of one at once.

A stack of matrices is moved as by an optimizer of its own for each matrix (``GradientRule``), so
one stack holds the runs of all problems with all step sizes:

    u_t = rule(g_1, ..., g_t),      W_n <- W_n - lr_n u_n
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from nestling.optim import GradientMemory, GradientRule, delta_momentum
from nestling.optim.clock import Clock
from nestling.shapes import Tensor

KEEP = 0.9
"""Of a momentum, unless it is chosen."""
KEEPS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
DELTAS = (0.02, 0.05, 0.1, 0.2, 0.5, 0.9, 1.0, 1.4)
COEFFICIENTS = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the raw form, which has the unit of ``1 / g^2``."""
MOMENTUM, CHOSEN_MOMENTUM = "momentum 0.9", "momentum, kept share chosen"
DELTA, RAW = "delta momentum, delta chosen", "delta momentum, raw, coefficient chosen"


@dataclass(frozen=True, kw_only=True)
class Family:
    """An optimizer whose step size is chosen, and perhaps one more number.

    Attributes:
        name: for tables.
        rules: by the other number; a single one where there is nothing else to choose.
        number: what that is.
    """

    name: str
    rules: Mapping[float, GradientRule]
    number: str = ""


def plain(keep: float, *, nesterov: bool = False) -> GradientRule:
    """Momentum; gradient descent where nothing is kept."""
    memory = GradientMemory(keep=keep, gain=1.0, nesterov=nesterov)
    return GradientRule(name=f"momentum {keep:g}", memories=(memory,))


def families() -> dict[str, Family]:
    """Gradient descent, momentum and delta momentum, as given and with a number chosen."""

    def delta(values: Sequence[float], *, normalized: bool) -> dict[float, GradientRule]:
        return {
            value: delta_momentum(beta=KEEP, delta=value, normalized=normalized) for value in values
        }

    made = (
        Family(name="gradient descent", rules={0.0: plain(0.0)}),
        Family(name=MOMENTUM, rules={KEEP: plain(KEEP)}),
        Family(name="Nesterov 0.9", rules={KEEP: plain(KEEP, nesterov=True)}),
        Family(name=CHOSEN_MOMENTUM, rules={b: plain(b) for b in KEEPS}, number="kept"),
        Family(name="delta momentum, delta 1", rules=delta((1.0,), normalized=True)),
        Family(name=DELTA, rules=delta(DELTAS, normalized=True), number="delta"),
        Family(name="delta momentum, raw, coefficient 1", rules=delta((1.0,), normalized=False)),
        Family(name=RAW, rules=delta(COEFFICIENTS, normalized=False), number="coefficient"),
    )
    return {family.name: family for family in made}


def log_grid(low: float, high: float, count: int) -> tuple[float, ...]:
    """Step sizes at equal ratios, to three digits.

    >>> log_grid(0.01, 1.0, 5)
    (0.01, 0.0316, 0.1, 0.316, 1.0)
    """
    ratio = (high / low) ** (1 / max(count - 1, 1))
    return tuple(float(f"{low * ratio**i:.3g}") for i in range(count))


def said(values: Sequence[float]) -> str:
    """A grid in a few words, for the key of a row.

    >>> said((0.01, 0.1, 1.0))
    '3 from 0.01 to 1'
    """
    return f"{len(values)} from {min(values):g} to {max(values):g}"


def walk(
    rule: GradientRule, start: Tensor, gradient: Callable[[int, Tensor], Tensor],
    lr: Tensor, steps: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Where all runs are after each step.

    Args:
        rule: of the optimizer.
        start: ``(N, O, I)``, one matrix for each run.
        gradient: of step t = 1, 2, ... at such a stack.
        lr: ``(N,)``.
        steps: how many.

    >>> import torch
    >>> start, lr = torch.ones(2, 1, 1), torch.tensor([0.25, 0.5])
    >>> [*walk(plain(0.0), start, lambda t, W: 2 * W, lr, steps=2)][-1].flatten()
    tensor([0.2500, 0.0000])
    """
    W, states = start, [rule.zeros(start)]
    for t in range(1, steps + 1):
        [u] = rule.update(states, [gradient(t, W)], Clock(t))
        W = W - lr[:, None, None] * u
        yield W


def save(figure: Figure, file: Path) -> Path:
    """Write a picture; its folder is made if there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    return file
