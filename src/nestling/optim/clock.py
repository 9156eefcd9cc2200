"""How many gradients a parameter has been moved by, and where in a period that is.

A clock is a number, or numbers on the device that no step ever asks for: then a step can be
captured as a graph, and what happens at the end of a period is computed at every step and chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nestling.shapes import Tensor


@dataclass(frozen=True)
class Clock:
    """The time of some parameters, counting the step that is being made; the first is 1.

    Attributes:
        t: steps, the same for all; or one number on the device for each parameter.

    >>> clock = Clock(5)
    >>> clock.begins(4), clock.ends(4), clock.ends(5)
    (True, False, True)
    """

    t: int | Sequence[Tensor]

    @property
    def on_device(self) -> bool:
        """Whether the time is never known to the host."""
        return not isinstance(self.t, int)

    def begins(self, period: int) -> bool:
        """Whether this step is the first of a period. Host clocks only."""
        assert isinstance(self.t, int)
        return (self.t - 1) % period == 0

    def ends(self, period: int) -> bool:
        """Whether this step is the last of a period. Host clocks only."""
        assert isinstance(self.t, int)
        return self.t % period == 0

    def reaches(self, period: int) -> bool:
        """Whether a period is over, or may be."""
        return not isinstance(self.t, int) or self.t >= period

    def begin_masks(self, period: int) -> list[Tensor]:
        """:meth:`begins`, for each parameter, on the device."""
        return [torch.remainder(t - 1, period) == 0 for t in self._tensors]

    def end_masks(self, period: int) -> list[Tensor]:
        """:meth:`ends`, for each parameter, on the device."""
        return [torch.remainder(t, period) == 0 for t in self._tensors]

    def mass(self, keep: float) -> float | list[Tensor]:
        """``1 - keep^t``: what the weights of an average that began at zero add up to.

        >>> Clock(2).mass(0.9)
        0.18999999999999995
        """
        if isinstance(self.t, int):
            return 1 - keep**self.t
        if keep == 0:
            return [torch.ones_like(t) for t in self._tensors]
        # Of few bits on the device, where 1 - 0.999 would be wrong in its fifth digit.
        return [-torch.expm1(t * math.log(keep)) for t in self._tensors]

    @property
    def _tensors(self) -> Sequence[Tensor]:
        assert not isinstance(self.t, int)
        return self.t
