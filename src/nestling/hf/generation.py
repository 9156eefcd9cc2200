"""``generate`` on a state: which tokens are new, and how a long text is read before the first draw.

Everything else, how a token is chosen, is transformers' own.
"""

from __future__ import annotations

import copy
from typing import Any

from transformers import GenerationMixin

from nestling.hf.cache import HopeCache


class HopeGeneration(GenerationMixin):
    """The parts of ``generate`` that know the cache.

    ``input_ids`` are the whole text, of which the cache has read the beginning; or, with
    ``attention_mask=cache.mask(input_ids)``, only what is new.
    """

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(
        self: Any, generation_config: Any, model_kwargs: dict, *args: Any, **words: Any
    ) -> None:
        """A cache of ours, from the start on, unless none is wanted."""
        name = "past_key_values"
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "cache_implementation: expected None, since the cache is the model's state, got "
                f"{generation_config.cache_implementation!r}"
            )
        given = model_kwargs.get(name)
        if given is None:
            if generation_config.use_cache is not False:
                model_kwargs[name] = HopeCache(self.config)
        elif not isinstance(given, HopeCache):
            raise ValueError(f"{name}: expected a HopeCache, got {type(given).__name__}")

    # transformers looks for the name ``kwargs`` to know what ``forward`` may be given.
    def prepare_inputs_for_generation(
        self: Any, input_ids: Any, next_sequence_length: int | None = None, **kwargs: Any
    ) -> Any:
        """As in transformers, but tokens that would be lost are told."""
        if next_sequence_length is not None and next_sequence_length < 1:
            cache = kwargs.get("past_key_values")
            raise ValueError(
                f"input_ids: {input_ids.shape[1]} tokens, none of which is new to {cache!r}; "
                "expected the whole text with something new, or only what is new and "
                "attention_mask=cache.mask(input_ids)"
            )
        stock: Any = super()
        return stock.prepare_inputs_for_generation(
            input_ids, next_sequence_length=next_sequence_length, **kwargs
        )

    def _prefill(
        self: Any, input_ids: Any, generation_config: Any, model_kwargs: dict, *args: Any,
        **words: Any,
    ) -> Any:  # fmt: skip
        """Read all but the last piece in pieces of ``prefill_chunk_size``, then go on as always."""
        size, cache = generation_config.prefill_chunk_size, model_kwargs.get("past_key_values")
        if size is not None:
            if cache is None:
                raise ValueError("prefill_chunk_size: expected None without a cache")
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
            input_ids = self._read_ahead(input_ids, model_kwargs.get("attention_mask"), cache, size)
        stock: Any = super()
        return stock._prefill(input_ids, generation_config, model_kwargs, *args, **words)

    def _read_ahead(self: Any, input_ids: Any, mask: Any, cache: HopeCache, size: int) -> Any:
        """Feed pieces; what ``input_ids`` then says to one who knows what the cache has read."""
        start, columns = cache.get_seq_length(), input_ids.shape[1]
        whole = mask is None or mask.shape[1] == columns
        first = start if whole else 0
        pieces = input_ids[:, first:].split(size, dim=1)
        for piece in pieces[:-1]:
            until = cache.get_seq_length() + piece.shape[1]
            own = None if mask is None else mask[:, :until]
            self(
                input_ids=piece, attention_mask=own, past_key_values=cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
        return input_ids if whole else pieces[-1]
