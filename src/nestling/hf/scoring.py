"""How the text of a request is read: from which state, and whether it writes.

    on     token t is scored by what the text before it has written            p(x_t | M_{t-1})
    off    every token is scored by the state that the text started from       p(x_t | M_0)

Each row of a call is a text by itself and starts from the same state. Levels of the next-token loss
are written at the end of their chunks, whose losses must be known: with writes on, a chunk is
scored by what was written before it, then it is observed, then the next one is scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from nestling.hf.cache import HopeCache
from nestling.hf.generation import HopeGeneration
from nestling.hf.stack_observe import opened
from nestling.hf.stack_read import read_stretch
from nestling.hf.stacked import StackedModel
from nestling.memory.state import map_tensors
from nestling.models import LanguageModel
from nestling.models.observe import observe, observing
from nestling.models.stretch import until_end
from nestling.shapes import Tensor


@runtime_checkable
class Learner(Protocol):
    """A model whose inner state is a value, as an evaluation knows it; rows do not meet."""

    @property
    def module(self) -> torch.nn.Module:
        """The model."""
        ...

    @property
    def learns(self) -> bool:
        """Whether a level is written by the next-token loss."""
        ...

    def start(self, batch: int) -> Any:
        """The state before the first token."""
        ...

    def still(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> Tensor:
        """Logits ``(B, T, V)`` with every memory as the state holds it."""
        ...

    def on_the_way(self, ids: Tensor, state: Any) -> Tensor:
        """Logits, every memory but those of the loss written on the way."""
        ...

    def room(self, state: Any) -> int:
        """Tokens that the levels of the loss, as they stand, still read."""
        ...

    def peek(self, ids: Tensor, state: Any) -> Tensor:
        """Logits of the next tokens, at most ``room`` of them, as ``observe`` scores them."""
        ...

    def observe(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """Logits ``(B, V)`` after the last token, and the state with everything written."""
        ...


@dataclass(frozen=True)
class Ours:
    """A :class:`LanguageModel`."""

    module: LanguageModel

    @property
    def learns(self) -> bool:
        """As it is configured."""
        return self.module.config.learns_from_loss

    def start(self, batch: int) -> Any:
        """The learned initial memories."""
        return self.module.initial_state(batch)

    def still(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> Tensor:
        """``writes="off"``."""
        return self.module(ids, state, mask=mask, writes="off")[0]

    def on_the_way(self, ids: Tensor, state: Any) -> Tensor:
        """``forward``."""
        return self.module(ids, state)[0]

    def room(self, state: Any) -> int:
        """To the end of the open chunk."""
        seen = observing(self.module, state).observed
        assert seen is not None
        assert seen.chunk is not None
        return int((until_end(self.module, seen.chunk.blocks) - seen.chunk.count)[0])

    def peek(self, ids: Tensor, state: Any) -> Tensor:
        """The open chunk goes on, and the state stays."""
        return self.module.logits(self.module.read(ids, state.blocks)[0])

    def observe(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """All that :func:`nestling.models.observe` does."""
        after = observe(self.module, ids, state, mask=mask).state
        assert after.observed is not None
        return self.module.logits(after.observed.hidden[:, None])[:, 0], after


@dataclass(frozen=True)
class Stacked:
    """A :class:`StackedModel` on a decoder."""

    module: StackedModel

    @property
    def learns(self) -> bool:
        """Whether a level in context has a step size."""
        return bool(self.module.stack.active)

    def start(self, batch: int) -> Any:
        """Nothing is written."""
        return self.module.initial_state(batch)

    def still(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> Tensor:
        """``forward``, in which levels hold still."""
        return self.module(ids, state, attention_mask=mask, writes="off")[0]

    def on_the_way(self, ids: Tensor, state: Any) -> Tensor:
        """The same: only the loss writes here."""
        return self.module(ids, state)[0]

    def room(self, state: Any) -> int:
        """To the end of the open chunk."""
        stack = self.module.stack
        state = opened(stack, state)
        assert state.open is not None
        return int((stack.until_end(state) - state.open.count)[0])

    def peek(self, ids: Tensor, state: Any) -> Tensor:
        """The open chunk goes on, and the state stays."""
        stack = self.module.stack
        state = opened(stack, state)
        size = torch.full((ids.shape[0],), ids.shape[1])
        caches = tuple(block.cache for block in state.blocks)
        return read_stretch(
            stack.base, ids.cpu(), size, caches, state.held, state.position, stack.written(state)
        ).logits

    def observe(self, ids: Tensor, state: Any, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        """All that :meth:`StackedModel.observe` does."""
        after = self.module.observation(ids, state, mask).state
        assert after.open is not None
        return after.open.logits, after


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How texts are read.

    Attributes:
        learner: the model.
        writes: whether a text writes.
        state: of one row, where every text starts; ``None``: where the model starts.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> ids = torch.tensor([[1, 2, 3]])
    >>> with torch.no_grad():
    ...     logits = Reading(learner=Ours(model), writes=True).logits(ids)
    >>> bool((logits == model(ids)[0]).all())
    True
    """

    learner: Learner
    writes: bool
    state: Any = None

    def start(self, batch: int) -> Any:
        """The state that every row starts from."""
        if self.state is None:
            return self.learner.start(batch)
        return map_tensors(lambda tensor: tensor.repeat_interleave(batch, dim=0), self.state)

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Of every token of every text, ``(B, T)`` to ``(B, T, V)``.

        What stands behind a text, padding included, does not change the logits in it.
        """
        learner, state = self.learner, self.start(ids.shape[0])
        if not self.writes:
            return learner.still(ids, state)
        if not learner.learns:
            return learner.on_the_way(ids, state)
        found, at, size = [], 0, ids.shape[1]
        while at < size:
            end = min(at + learner.room(state), size)
            if end > at:
                found.append(learner.peek(ids[:, at:end], state))
            if end == size:
                break
            # The token behind a chunk tells its last loss: the chunk is written, then it is read.
            last, state = learner.observe(ids[:, at : end + 1], state)
            found.append(last[:, None])
            at = end + 1
        return torch.cat(found, dim=1)

    def next(self, ids: Tensor, mask: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Logits ``(B, V)`` after new tokens, and the state; padding is on the left.

        With writes off no state comes back: every token has to be read with all before it.
        """
        if self.writes:
            return self.learner.observe(ids, state, mask)
        return self.learner.still(ids, state, mask)[:, -1], None


class Speaker(PreTrainedModel, HopeGeneration, GenerationMixin):
    """transformers' ``generate`` on a :class:`Reading`: what it writes, it has read.

    Args:
        reading: of the prompt and of what follows.
        like: the model whose ``generation_config`` holds.
        on_step: called with the number of rows of every step.
    """

    config_class = PreTrainedConfig
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(
        self, reading: Reading, like: Any, on_step: Callable[[int], None] | None = None
    ) -> None:
        config = PreTrainedConfig()
        config.num_hidden_layers = 1
        super().__init__(config)
        self.core, self.reading, self.on_step = reading.learner.module, reading, on_step
        if like is not None and getattr(like, "generation_config", None) is not None:
            self.generation_config = like.generation_config

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 1,
    ) -> CausalLMOutputWithPast:
        """Logits ``(B, 1, V)`` after the last token; the cache holds the new state."""
        cache, rows = past_key_values, input_ids.shape[0]
        state = None if cache is None else cache.state
        mask = None
        if attention_mask is not None:
            mask = attention_mask[:, -input_ids.shape[1] :].bool()
            mask = None if bool(mask.all()) else mask
        last, after = self.reading.next(
            input_ids, mask, self.reading.start(rows) if state is None else state
        )
        if cache is not None:
            read = torch.full((rows,), input_ids.shape[1]) if mask is None else mask.sum(1).cpu()
            cache.advance(after, last, read, input_ids.shape[1])
        if self.on_step is not None:
            self.on_step(rows)
        return CausalLMOutputWithPast(logits=last[:, None], past_key_values=cache)

    def speak(self, ids: Tensor, mask: Tensor | None = None, **words: Any) -> Tensor:
        """``generate``, with a cache where there is a state to keep."""
        cache = HopeCache(self.config) if self.reading.writes else None
        stock: Any = super()
        return stock.generate(
            ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None, **words
        )
