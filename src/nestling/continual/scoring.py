"""Losses of a learner on an experience: error rate, and bits per target.

Both are losses, lower is better: an accuracy is one minus the error rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from nestling.continual.protocol import IGNORED, Experience, Predictor

ROWS = 256  # at a time


@torch.no_grad()
def error_rate(
    learner: Predictor, experience: Experience, *, among: Sequence[int] | None = None
) -> float:
    """Share of targets that do not have the highest score; ``1 - accuracy``.

    Args:
        learner: asked for scores of the inputs, and told nothing else.
        experience: to measure on.
        among: classes to choose from, for the task-incremental setting; ``None``: from all.

    Raises:
        ValueError: if ``among`` names a class that has no score, or no target counts.
    """
    wrong = total = 0
    for start in range(0, len(experience.items), ROWS):
        batch = experience.items.rows(slice(start, start + ROWS))
        scores = learner.predict(batch.inputs)
        if among is not None:
            wanted = torch.tensor(list(among), device=scores.device)
            if len(wanted) == 0 or int(wanted.min()) < 0 or int(wanted.max()) >= scores.shape[-1]:
                raise ValueError(
                    f"among: expected classes below {scores.shape[-1]}, got {list(among)}"
                )
            chosen = wanted[scores[..., wanted].argmax(-1)]
        else:
            chosen = scores.argmax(-1)
        counts = batch.targets != IGNORED
        wrong += int((chosen[counts] != batch.targets[counts]).sum())
        total += int(counts.sum())
    if total == 0:
        raise ValueError(f"experience {experience.name!r}: no target counts")
    return wrong / total


def error_rate_within_task(learner: Predictor, experience: Experience) -> float:
    """Task-incremental error rate: the answer is one of the experience's own classes.

    Raises:
        ValueError: if the experience has no classes.
    """
    if experience.classes is None:
        raise ValueError(f"experience {experience.name!r}: expected classes, it has none")
    return error_rate(learner, experience, among=experience.classes)


@torch.no_grad()
def bits_per_target(learner: Predictor, experience: Experience) -> float:
    """Mean cross-entropy in bits; bits per byte where a token is a byte.

    Raises:
        ValueError: if no target counts.
    """
    total, count = 0.0, 0
    for start in range(0, len(experience.items), ROWS):
        batch = experience.items.rows(slice(start, start + ROWS))
        scores = learner.predict(batch.inputs).flatten(0, -2).double()
        targets = batch.targets.flatten()
        total += float(F.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum"))
        count += batch.count
    if count == 0:
        raise ValueError(f"experience {experience.name!r}: no target counts")
    return total / count / math.log(2)
