"""Learning without forgetting: on the new inputs, go on saying what was said before.

    L = -ln p(y | x) + w T^2 KL(p_teacher(. | x; T) || p(. | x; T))      over former targets only

where the teacher is the model as it was when the last experience ended, and p(. | x; T) is the
softmax of the scores of former targets divided by T. Li and Hoiem 2016. It must be told when an
experience ends.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nestling.continual.protocol import IGNORED, Batch, Cost
from nestling.continual.strategies.base import GradientLearner, cross_entropy, scores_of
from nestling.optim import adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Tensor


class LwF(GradientLearner):
    """Distillation from the former model on the new inputs.

    Args:
        model: as for every strategy, like ``make`` and ``**options``.
        strength: w.
        temperature: T.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        strength: float = 1.0,
        temperature: float = 2.0,
        **options: Any,
    ) -> None:
        if not strength >= 0:
            raise ValueError(f"strength: expected a number >= 0, got {strength}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        super().__init__(model, make, **options)
        self.strength, self.temperature = strength, temperature
        self.teacher: nn.Module | None = None
        self.former = torch.zeros(0, dtype=torch.long)

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before and without the teacher, in nats."""
        scores = self.scores(batch.inputs)
        loss = cross_entropy(scores, batch.targets)
        whole = loss if self.teacher is None else loss + self.distillation(batch, scores)
        self.step(whole, count=batch.count)
        return loss.item()

    def distillation(self, batch: Batch, scores: Tensor) -> Tensor:
        """``w T^2 KL(teacher || model)``, mean over the places whose targets count.

        Raises:
            ValueError: if no experience has ended yet.
        """
        if self.teacher is None:
            raise ValueError("distillation: there is no teacher before the first experience ends")
        with torch.no_grad():
            said = scores_of(self.teacher, batch.inputs)
        self._spent += Cost(forward=said.shape[:-1].numel())
        counts = batch.targets != IGNORED
        p, q = (
            (s[counts][:, self.former.to(s.device)] / self.temperature).log_softmax(-1)
            for s in (said, scores)
        )
        kl = F.kl_div(q, p, log_target=True, reduction="batchmean")
        return self.strength * self.temperature**2 * kl

    def end_experience(self, items: Batch) -> None:
        """Become the teacher of what comes."""
        super().end_experience(items)
        self.teacher = copy.deepcopy(self.model).requires_grad_(False)
        seen = items.targets[items.targets != IGNORED].unique().cpu()
        self.former = torch.cat([self.former, seen]).unique()

    def memory(self) -> dict[str, Any]:
        """The teacher and the targets that it knows."""
        teacher = None if self.teacher is None else dict(self.teacher.state_dict())
        return {"teacher": teacher, "former": self.former}

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        self.former, self.teacher = memory["former"].cpu().clone(), None
        if memory["teacher"] is not None:
            self.teacher = copy.deepcopy(self.model).requires_grad_(False)
            self.teacher.load_state_dict(memory["teacher"])
