"""Numbers that optimizers take: an error names the argument, what came and what was expected."""

from __future__ import annotations

import math
from typing import Any


def check_share(name: str, value: Any, *, one: bool = True) -> None:
    """Make sure that a number is in [0, 1], or in [0, 1) where one would divide by zero.

    >>> check_share("beta", 1.0, one=False)
    Traceback (most recent call last):
    ValueError: beta: expected a number in [0, 1), got 1.0
    """
    if not (_number(value) and 0 <= value <= 1 and (one or value < 1)):
        raise ValueError(f"{name}: expected a number in [0, 1{']' if one else ')'}, got {value!r}")


def check_at_least(name: str, value: Any, least: float = 0.0) -> None:
    """Make sure that a number is finite and no smaller."""
    if not (_number(value) and math.isfinite(value) and value >= least):
        raise ValueError(f"{name}: expected a number >= {least:g}, got {value!r}")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Make sure that a number is whole and no smaller.

    >>> check_whole("period", 0)
    Traceback (most recent call last):
    ValueError: period: expected a whole number >= 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number >= {least}, got {value!r}")


def check_betas(betas: Any, count: int) -> None:
    """Make sure that there are so many numbers, each in [0, 1).

    >>> check_betas((0.9, 1.0), 2)
    Traceback (most recent call last):
    ValueError: betas: expected a number in [0, 1), got 1.0
    """
    if len(betas) != count:
        raise ValueError(f"betas: expected {count} numbers, got {betas}")
    for beta in betas:
        check_share("betas", beta, one=False)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
