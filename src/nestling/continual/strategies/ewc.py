"""Elastic weight consolidation: hold each parameter as firmly as it mattered.

    offline:   L = -ln p(y | x) + w / 2 sum over former k, i of F^k_i (theta_i - theta^k_i)^2
    online:    L = -ln p(y | x) + w / 2 sum_i F_i (theta_i - theta*_i)^2,
               F <- gamma F + F_new,  theta* <- theta          when an experience ends

Kirkpatrick et al. 2017; online: Schwarz et al. 2018 ("Progress and Compress"). It must be told when
an experience ends: on a stream that hides it nothing is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from nestling.continual.protocol import Batch, Cost
from nestling.continual.strategies.base import GradientLearner, cross_entropy
from nestling.continual.strategies.fisher import check, diagonal_fisher
from nestling.optim import adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor


class EWC(GradientLearner):
    """A quadratic penalty around former weights, scaled by the Fisher information.

    Args:
        model: as for every strategy, like ``make`` and ``**options``.
        strength: w.
        gamma: ``None``: offline, one anchor for each experience; else online, with this share of
            the former Fisher information kept.
        items: of an experience that its Fisher information is found from; ``None``: all.
        targets: ``"empirical"`` or ``"sampled"``.
        seed: of the sampled targets.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        strength: float,
        gamma: float | None = None,
        items: int | None = 1024,
        targets: str = "empirical",
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not strength >= 0:
            raise ValueError(f"strength: expected a number >= 0, got {strength}")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"gamma: expected 0 <= gamma <= 1, got {gamma}")
        check(items, targets, name="items")
        super().__init__(model, make, **options)
        self.strength, self.gamma, self.items, self.targets = strength, gamma, items, targets
        self.anchors: list[dict[str, Tensor]] = []
        self.fishers: list[dict[str, Tensor]] = []
        self._generator = torch.Generator().manual_seed(seed)

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before and without the penalty, in nats."""
        loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        self.step(loss + self.penalty(), count=batch.count)
        return loss.item()

    def penalty(self) -> Tensor:
        """``w / 2 sum F (theta - theta*)^2``."""
        named = dict(self.model.named_parameters())
        total = next(iter(named.values())).new_zeros(())
        for anchor, fisher in zip(self.anchors, self.fishers, strict=True):
            for name, value in fisher.items():
                total = total + (value * (named[name] - anchor[name]).square()).sum()
        return self.strength / 2 * total

    def end_experience(self, items: Batch) -> None:
        """Anchor the weights where they are."""
        super().end_experience(items)
        new = diagonal_fisher(
            self.model, items, most=self.items, targets=self.targets, generator=self._generator
        )
        used = min(len(items), self.items or len(items))
        places = items.rows(slice(0, used)).targets.numel()
        self._spent += Cost(forward=places, backward=places)
        anchor = {n: p.detach().clone() for n, p in self.model.named_parameters() if n in new}
        if self.gamma is None:
            self.anchors, self.fishers = [*self.anchors, anchor], [*self.fishers, new]
            return
        if self.fishers:
            new = {name: self.gamma * self.fishers[0][name] + value for name, value in new.items()}
        self.anchors, self.fishers = [anchor], [new]

    def memory(self) -> dict[str, Any]:
        """Anchors and Fisher information."""
        return {
            "anchors": self.anchors,
            "fishers": self.fishers,
            "generator": self._generator.get_state(),
        }

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        self.anchors = [dict(anchor) for anchor in memory["anchors"]]
        self.fishers = [dict(fisher) for fisher in memory["fishers"]]
        self._generator.set_state(memory["generator"].cpu())
