"""A language model that learns by reading only: its inner state goes on, its weights never move.

    M_t, state <- write(M_{t-1}, x_t)        every token of the stream, one text from end to end
    scores(x)   =  model(x, state)           each row read from a copy of the state

What Hope's memories and levels in context (NL 3.3, 7.1, 8) keep of a stream, as a strategy: no
gradient of weights, nothing stored but the state. It may be measured on a model that was never
trained on the stream, beside strategies that move weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from nestling.continual.protocol import IGNORED, Batch, Cost
from nestling.memory import flatten, map_tensors, unflatten
from nestling.models.language_model import LanguageModel
from nestling.models.observe import losses, observing, settled
from nestling.models.state import ModelState
from nestling.shapes import Tensor

ROWS = 32  # copies of the state at a time


class ContextReader:
    """A model that reads the stream on and on, and is asked from where it stands.

    Args:
        model: any :class:`nestling.models.LanguageModel`. Its state has a fixed size unless its
            attention has no window: then it grows with the text.
        writes: whether a row that is asked about also writes, into a copy of the state that is
            then dropped (``"on"``), or every token of it meets the memories as they stand
            (``"off"``). Levels that learn from the next-token loss hold still either way.

    Raises:
        ValueError: if ``writes`` is another word.

    >>> from nestling.models import build
    >>> learner = ContextReader(build("hope", width=16, heads=2, layers=1))
    >>> ids = torch.tensor([list(b"abcdefgh")])
    >>> before = learner.predict(ids)
    >>> loss = learner.observe(Batch(ids[:, :-1], ids[:, 1:]))
    >>> torch.equal(learner.predict(ids), before), learner.cost.backward
    (False, 0)
    """

    def __init__(self, model: LanguageModel, *, writes: Literal["on", "off"] = "on") -> None:
        if writes not in ("on", "off"):
            raise ValueError(f"writes: expected 'on' or 'off', got {writes!r}")
        self.model, self.writes = model, writes
        self.inner: ModelState | None = None
        self._forward = 0

    @property
    def cost(self) -> Cost:
        """Tokens read, and the bytes of the inner state."""
        tensors = {} if self.inner is None else flatten(self.inner)
        stored = sum(t.numel() * t.element_size() for t in tensors.values())
        return Cost(stored_bytes=stored, forward=self._forward)

    @torch.no_grad()
    def observe(self, batch: Batch) -> float:
        """Read a batch, row after row; its mean loss in nats, each token before it was read.

        The last target of a row is predicted but not read: the next row goes on without it, as the
        rows of a shuffled stream do not join. Places whose target does not count are padding and
        are not read.
        """
        counts = batch.targets != IGNORED
        if not bool(counts.any()):
            return 0.0
        ids, targets = batch.inputs[counts][None], batch.targets[counts][None]
        nats, after = losses(self.model, ids, targets, self.inner)
        # Memory of its own, laid out as it comes back from a file: so it goes on to the bit.
        self.inner = map_tensors(_own, after)
        self._forward += ids.numel()
        return nats.mean().item()

    @torch.no_grad()
    def predict(self, inputs: Tensor) -> Tensor:
        """Logits ``(B, T, vocabulary)``, every row read from where the stream stands."""
        inner = None if self.inner is None else settled(self.model, self.inner)
        found = []
        for rows in inputs.split(ROWS):
            state = None if inner is None else map_tensors(_rows(len(rows)), inner)
            found.append(self.model(rows, state, writes=self.writes)[0])
        return torch.cat(found)

    def end_experience(self, items: Batch) -> None:
        """Nothing: it needs no boundaries."""

    def state(self) -> dict[str, Any]:
        """Weights and inner state; not copied."""
        inner = None if self.inner is None else flatten(self.inner)
        return {"model": dict(self.model.state_dict()), "inner": inner, "forward": self._forward}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Become the learner that returned ``state``.

        Raises:
            ValueError: naming what differs, if it is of another model.
        """
        own, given = set(self.model.state_dict()), set(state["model"])
        if own != given:
            raise ValueError(f"state: it is of another model: {sorted(own ^ given)[0]!r} differs")
        self.model.load_state_dict(state["model"])
        self.inner, self._forward = None, int(state["forward"])
        if state["inner"] is not None:
            template = self.model.initial_state(1)
            if any(name.startswith("observed.") for name in state["inner"]):
                template = observing(self.model, template)
            # Clocks are whole numbers and live on the processor, memories with the model.
            device = self.model.embedding.weight.device
            placed = {
                name: _own(t.to(device if t.is_floating_point() else "cpu"))
                for name, t in state["inner"].items()
            }
            self.inner = unflatten(template, placed)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _rows(count: int) -> Any:
    return lambda tensor: tensor.repeat_interleave(count, dim=0)
