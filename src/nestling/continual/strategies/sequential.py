"""Sequential fine-tuning: learn what comes, and do nothing about what was.

    L = -ln p(y | x)

The lower bound of every comparison, and with levels that move at their own periods the plain form
of the continuum (NL Eq. 71). On ``together(experiences)`` it is joint training, the upper bound.
"""

from __future__ import annotations

from nestling.continual.protocol import Batch
from nestling.continual.strategies.base import GradientLearner, cross_entropy


class Sequential(GradientLearner):
    """Plain training on the batches as they come.

    >>> import torch
    >>> learner = Sequential(torch.nn.Linear(1, 2), lambda p: torch.optim.SGD(p.values(), lr=1.0))
    >>> batch = Batch(torch.ones(4, 1), torch.ones(4, dtype=torch.long))
    >>> learner.observe(batch) > learner.observe(batch)
    True
    >>> learner.cost
    Cost(stored_bytes=0, forward=8, backward=8)
    """

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        self.step(loss, count=batch.count)
        return loss.item()
