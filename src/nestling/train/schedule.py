"""Learning rate over a run: linear warm-up, then a cosine down to a floor.

    lr(s) / lr = (s + 1) / W                                                 s < W
               = floor + (1 - floor) (1 + cos(pi (s - W) / (S - W))) / 2     s >= W

for step ``s`` of ``S``, with ``W`` warm-up steps.
"""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int = 0, floor: float = 0.1) -> float:
    """The factor of the learning rate at ``step``, counted from 0.

    Args:
        step: from 0; at and after ``steps`` the factor is ``floor``.
        steps: length of the run.
        warmup: steps of the linear rise. The first step already moves: its factor is 1 / warmup.
        floor: factor at the end.

    Raises:
        ValueError: if an argument is negative, ``steps`` is 0, or ``floor`` is not in [0, 1].

    >>> [round(warmup_cosine(s, steps=6, warmup=2, floor=0.1), 3) for s in (0, 1, 2, 4, 6)]
    [0.5, 1.0, 1.0, 0.55, 0.1]
    """
    for name, value, least in (("step", step, 0), ("steps", steps, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"{name}: expected a whole number >= {least}, got {value}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor: expected a number in [0, 1], got {floor}")
    if step < warmup:
        return (step + 1) / warmup
    if step >= steps:
        return floor
    return floor + (1 - floor) * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2
