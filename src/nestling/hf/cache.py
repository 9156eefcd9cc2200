"""A model's inner state as a cache of transformers, and as a session on the disk.

cache.state  <-  the new state, whole, with every forward pass

A state is a value: nothing in it is ever written in place, so caches may share tensors, and
:meth:`HopeCache.fork` costs nothing. It keeps its size whatever was read, unless a block attends
to every token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import Cache, PreTrainedModel

from nestling.hf.tokenizer import our_tokenizer
from nestling.memory.state import map_tensors
from nestling.models import LanguageModel, ModelState
from nestling.session import Save, journal
from nestling.session.outline import settled
from nestling.session.reader import Moment, Reader
from nestling.session.session import moment_at
from nestling.shapes import Tensor


class HopeCache(Cache):
    """The state of a model after what it has read, one row for each sequence.

    A forward pass that is given a cache reads on from it and leaves the new state in it.

    Args:
        config: a ``HopeConfig``; only for the number of layers that ``len`` tells.

    Attributes:
        state: ``None`` before the first token.
        last: ``(B, D)`` output of the last block at every row's last token; ``None`` where it came
            from a session, which keeps the prediction instead.
        read: ``(B,)`` tokens that each row has read, without padding.
        columns: tokens and padding: what :meth:`get_seq_length` tells.

    >>> from nestling.hf import HopeConfig, HopeForCausalLM
    >>> model = HopeForCausalLM(HopeConfig("hope", width=16, heads=2, layers=1))
    >>> cache = model(torch.tensor([[1, 2, 3]])).past_key_values
    >>> before = cache.fork()
    >>> _ = model(torch.tensor([[4, 5]]), past_key_values=cache)
    >>> before.get_seq_length(), cache.get_seq_length()
    (3, 5)
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(layers=[])
        self.state: ModelState | None = None
        self.last: Tensor | None = None
        self.read: Tensor | None = None
        self.columns = 0
        self._logits: Tensor | None = None
        self._length = 0 if config is None else config.num_hidden_layers

    def advance(self, state: Any, last: Tensor, tokens: Tensor, columns: int) -> None:
        """What a forward pass has read.

        Args:
            state: the new one.
            last: ``(B, D)`` see above.
            tokens: ``(B,)`` how many tokens of each row were new.
            columns: the same with padding.
        """
        fresh = tokens > 0
        if bool(fresh.any()) or self.read is None:
            if self.last is not None and not bool(fresh.all()):
                last = torch.where(fresh[:, None].to(last.device), last, self.last.to(last.dtype))
            self.last, self._logits = last, None
        self.state = state
        self.read = tokens if self.read is None else self.read + tokens
        self.columns += columns

    def fork(self) -> HopeCache:
        """Another cache that stands where this one does; both go on by themselves."""
        other = HopeCache()
        other.state, other.last, other.read = self.state, self.last, self.read
        other.columns, other._logits, other._length = self.columns, self._logits, self._length
        return other

    def mask(self, input_ids: Tensor) -> Tensor:
        """The ``attention_mask`` of new tokens that follow what was read: ones for both.

        ``generate`` takes the text from its beginning, or the new tokens alone with this mask.
        """
        return input_ids.new_ones(input_ids.shape[0], self.columns + input_ids.shape[1])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens and padding that were read."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: no text is too long."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns of a mask over everything, and where it begins."""
        return self.columns + query_length, 0

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether something was read."""
        return self.state is not None

    def reset(self) -> None:
        """Back before the first token."""
        self.state = self.last = self.read = self._logits = None
        self.columns = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row ``i`` goes on from where row ``beam_idx[i]`` stands."""
        self._rows(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        self._rows(lambda tensor: tensor[indices.to(tensor.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self._rows(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, tokens_to_remove: int) -> None:
        """Nothing that was read can be unread: only 0 is possible.

        Raises:
            ValueError: for anything else.
        """
        if tokens_to_remove != 0:
            raise ValueError(
                f"crop: expected 0, got {tokens_to_remove}: a state that has learned from a token "
                "cannot unlearn it; fork() the cache before, and read on from the fork"
            )

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """There are no keys and values.

        Raises:
            ValueError: always.
        """
        raise ValueError("update: this cache is a state, which a forward pass replaces as a whole")

    def activate_past_recording(self) -> None:
        """Refuse to be rolled back later.

        Raises:
            ValueError: always.
        """
        self.crop(1)

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first token."""
        return -1 if self.read is None else len(self.read)

    @property
    def is_initialized(self) -> bool:
        """Whether something was read."""
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        """It is not: clocks decide what is computed."""
        return False

    @property
    def is_croppable(self) -> bool:
        """It is not."""
        return False

    def __len__(self) -> int:
        return self._length if self.state is None else len(self.state.blocks)

    def __repr__(self) -> str:
        return f"HopeCache({self.columns} tokens, {max(0, self.batch_size)} rows)"

    def _rows(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is not None:
            self.state = map_tensors(function, self.state)
            parts = [self.last, self._logits, self.read]
            self.last, self._logits, self.read = map_tensors(function, parts)

    @torch.no_grad()
    def save(
        self, directory: str | Path, model: PreTrainedModel, *, tokenizer: Any = None,
        note: str = "",
    ) -> Save:  # fmt: skip
        """Save as a session (docs/sessions.md), which ``nestling session`` and ``load`` go on with.

        In a directory that holds a session of this model already it becomes its newest save.
        From here on this cache gives the same bits as one that is loaded.

        Args:
            directory: of the session.
            model: whose state it is.
            tokenizer: of the text, of transformers or ours; bytes if not given.
            note: what happened, one line.

        Raises:
            ValueError: if nothing was read, or there is not one row.
            SessionError: if the session is another model's, the disk refuses, the state is not
                finite, or another process holds the session.
        """
        if self.state is None or self.read is None or len(self.read) != 1 or not self.read[0]:
            raise ValueError(
                f"cache: a session has read something in one row, this one has {self!r}; "
                "batch_select_indices(torch.tensor([row])) keeps one row"
            )
        language_model, directory = language_model_of(model), Path(directory)
        reader = Reader(language_model, our_tokenizer(tokenizer, model.config.vocab_size))
        self.state = state = settled(self.state)
        logits = self._logits
        if logits is None:
            assert self.last is not None
            logits = language_model.logits(self.last[:, None])[:, 0]
        moment = Moment(position=int(self.read[0]), state=state, logits=logits[0])
        header, data = reader.pack(moment, note)
        journal.newest(directory)  # a place that is no session gets no lock
        with journal.hold(directory):
            known = journal.newest(directory)
            if known is None:
                return journal.begin(directory, header, data)
            reader.check(known)
            return journal.append(directory, header, data)

    @classmethod
    def load(
        cls, directory: str | Path, model: PreTrainedModel, *, tokenizer: Any = None, back: int = 0
    ) -> HopeCache:
        """Where a session stood at its newest save, or ``back`` saves before.

        Args:
            directory: of a session, whether a cache or ``nestling session`` has begun it.
            model: whose state it is.
            tokenizer: as in :meth:`save`.
            back: how many saves.

        Raises:
            SessionError: if there is none, it is damaged, or another model's.
        """
        language_model, cache = language_model_of(model), cls(model.config)
        reader = Reader(language_model, our_tokenizer(tokenizer, model.config.vocab_size))
        moment = moment_at(Path(directory), reader, back)
        if moment.logits is not None:
            cache.state, cache._logits = moment.state, moment.logits[None]
            cache.read, cache.columns = torch.tensor([moment.position]), moment.position
        return cache


def language_model_of(model: Any) -> LanguageModel:
    """Our model inside one of transformers.

    Raises:
        ValueError: if there is none.
    """
    found = [part for part in model.modules() if isinstance(part, LanguageModel)]
    if len(found) != 1:
        raise ValueError(f"model: expected a HopeForCausalLM, got {type(model).__name__}")
    return found[0]
