"""Our models as models of transformers: the same numbers, another door.

    logits, state = LanguageModel(ids, state)     <->     model(input_ids, past_key_values=cache)

Reading is writing: a forward pass moves every inner memory of its cache, in training and after it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from nestling.hf.cache import HopeCache
from nestling.hf.card import write_card
from nestling.hf.configuration import HopeConfig
from nestling.hf.generation import HopeGeneration
from nestling.layers.block import Block, BlockState
from nestling.models import LanguageModel, ModelState
from nestling.models.observe import observe, settled
from nestling.models.packing import pack
from nestling.shapes import Tensor

IGNORED = -100
"""The label of a token whose loss does not count."""


class HopePreTrainedModel(PreTrainedModel):
    """What the models share."""

    config_class = HopeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    # Nothing that was read can be unread: assisted generation is refused by its name.
    _is_stateful = True

    def _set_gradient_checkpointing(
        self,
        enable: bool = True,
        gradient_checkpointing_func: Callable[..., Any] = checkpoint,
        every_n_layers: int = 1,
    ) -> None:
        words = getattr(gradient_checkpointing_func, "keywords", {})
        if enable and words.get("use_reentrant") is not False:
            raise ValueError(
                "use_reentrant: expected False, since gradients reach the learned initial memories "
                f"through states and not through positional tensors, got {words or None}"
            )
        for module in self.modules():
            if isinstance(module, HopeModel):
                module.gradient_checkpointing = enable
                module.checkpointed = (gradient_checkpointing_func, every_n_layers)

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, **words: Any
    ) -> None:
        """As in transformers: ``config.json``, ``model*.safetensors``; and a model card."""
        super().save_pretrained(save_directory, is_main_process=is_main_process, **words)
        folder = Path(save_directory)
        if is_main_process and folder.is_dir():
            model = next(part for part in self.modules() if isinstance(part, HopeModel))
            write_card(folder, model.language_model, folder.resolve().name)


class HopeModel(HopePreTrainedModel):
    """Blocks without a prediction: ``AutoModel`` of a ``HopeConfig``.

    >>> model = HopeModel(HopeConfig("hope", width=16, heads=2, layers=1))
    >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.language_model = LanguageModel(config.to_model_config())
        self.gradient_checkpointing = False
        self.checkpointed: tuple[Callable[..., Any], int] = (checkpoint, 1)
        for parameter in self.language_model.parameters():
            if not parameter.is_meta:  # our constructor has drawn it
                parameter._is_hf_initialized = True  # pyright: ignore[reportAttributeAccessIssue]
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast | tuple:
        """Read, and write every memory on the way.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, or of everything since the cache was empty; 0 at padding,
                anywhere: padded tokens write nothing, and what they read has no meaning.
            past_key_values: the state to go on from; it holds the new one afterwards.
            inputs_embeds: none: text comes as tokens.
            use_cache: whether to return a cache where none was given; by default as configured.
            output_attentions: none: there are no attention maps.
            output_hidden_states: also the embeddings and every block's output, the last one
                normalised.
            return_dict: or else a tuple.

        Raises:
            ValueError: naming the argument.
        """
        ids, mask, cache = self.arguments(
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache, output_attentions
        )
        model, state = self.language_model, None if cache is None else cache.state
        model.check(ids, state, mask)
        packed = pack(ids, mask)
        lengths = None if packed.order is None else packed.lengths
        state = state or model.initial_state(ids.shape[0])
        state = state if state.observed is None else settled(model, state)
        x = model.embedding(packed.ids)
        streams, states = [x], []
        for index, (block, before) in enumerate(zip(model.block_list(), state.blocks, strict=True)):
            x, after = self._through(index, block, x, before, lengths)
            streams.append(x)
            states.append(after)
        if cache is not None:
            index = (packed.lengths - 1).clamp(min=0).to(x.device)
            last = x[torch.arange(len(index), device=x.device), index]
            after = ModelState(blocks=tuple(states))
            cache.advance(after, last, packed.lengths, ids.shape[1])
        hidden = packed.back(model.norm(x))
        every = None
        if wanted(output_hidden_states, self.config.output_hidden_states):
            every = (*(packed.back(stream) for stream in streams[:-1]), hidden)
        made = BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=cache, hidden_states=every
        )
        return made if wanted(return_dict, self.config.return_dict) else made.to_tuple()

    def arguments(
        self, input_ids: Any, attention_mask: Any, past_key_values: Any, inputs_embeds: Any,
        use_cache: bool | None, output_attentions: bool | None,
    ) -> tuple[Tensor, Tensor | None, HopeCache | None]:  # fmt: skip
        """Ids, which of them are tokens, and the cache to leave the state in.

        Raises:
            ValueError: naming the argument.
        """
        if inputs_embeds is not None:
            raise ValueError("inputs_embeds: expected input_ids, since text comes as tokens here")
        if output_attentions:
            raise ValueError("output_attentions: expected False: there are no attention maps")
        if not isinstance(input_ids, Tensor) or input_ids.dim() != 2:
            got = tuple(input_ids.shape) if isinstance(input_ids, Tensor) else input_ids
            raise ValueError(f"input_ids: expected shape (B, T), got {got}")
        if past_key_values is not None and not isinstance(past_key_values, HopeCache):
            kind = type(past_key_values).__name__
            raise ValueError(f"past_key_values: expected a HopeCache, got {kind}")
        cache = past_key_values
        if cache is None and wanted(use_cache, self.config.use_cache):
            cache = HopeCache(self.config)
        return input_ids, _token_mask(attention_mask, input_ids, cache), cache

    def get_input_embeddings(self) -> nn.Module:
        """The one table, which also predicts."""
        return self.language_model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another table; ``resize_token_embeddings`` sets one of another size."""
        self.config.vocab_size = value.num_embeddings  # pyright: ignore[reportAttributeAccessIssue]
        self.language_model.embedding = value  # pyright: ignore[reportAttributeAccessIssue]
        self.language_model.config = self.config.to_model_config()

    def _through(
        self, index: int, block: Block, x: Tensor, before: BlockState, lengths: Tensor | None
    ) -> tuple[Tensor, BlockState]:
        function, every = self.checkpointed
        if self.gradient_checkpointing and torch.is_grad_enabled() and index % every == 0:
            return function(block.__call__, x, before, lengths)
        return block(x, before, lengths)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw what a checkpoint did not hold as our constructor would."""
        missing = [
            name
            for name, parameter in module.named_parameters(recurse=False)
            if not getattr(parameter, "_is_hf_initialized", False)
        ]
        if missing:
            model = self.language_model
            path = next(name for name, part in model.named_modules() if part is module)
            fresh = LanguageModel(model.config).get_submodule(path)
            for name in missing:
                getattr(module, name).copy_(getattr(fresh, name))


class HopeForCausalLM(HopePreTrainedModel, HopeGeneration, GenerationMixin):
    """Hope and its relatives for ``AutoModelForCausalLM``, ``generate``, ``Trainer``, ``pipeline``.

    A model with levels that learn from the next-token loss (``config.learns_from_loss``) learns
    where the loss is: with ``labels``, the text is observed and these levels are written chunk by
    chunk, so that training sees what they do; ``logits`` are ``None`` then. Without labels, and so
    in ``generate``, such levels hold still, like all that read the last hidden state of the base
    model by themselves (TRL's ``SFTTrainer``).

    >>> model = HopeForCausalLM(HopeConfig("hope", width=16, heads=2, layers=1))
    >>> model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False).shape
    torch.Size([1, 7])
    """

    accepts_loss_kwargs = True
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "model.language_model.embedding.weight"
    }

    def __init__(self, config: HopeConfig) -> None:
        super().__init__(config)
        self.model = HopeModel(config)
        # The embedding itself, as the module that others look for.
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_language_model(cls, model: LanguageModel, **words: Any) -> HopeForCausalLM:
        """The same model with the door of transformers; its weights are shared, not copied.

        Args:
            model: of ours, for example out of :func:`nestling.storage.load.load_model`.
            **words: fields of the configuration, for example ``eos_token_id``.
        """
        with torch.device("meta"):
            made = cls(HopeConfig.from_model_config(model.config, **words))
        made.model.language_model = model
        made.tie_weights()
        return made

    @property
    def language_model(self) -> LanguageModel:
        """The model as the rest of nestling knows it (sessions, ``observe``, the level table)."""
        return self.model.language_model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Any = None,
        **words: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Predict the next token, and write every memory on the way.

        Args:
            labels: ``(B, T)`` the ids themselves, -100 where a token's loss does not count. They
                are shifted here, over padding: the loss is that of the same text without it.
            logits_to_keep: the last so many positions, or their indices; 0: all.
            num_items_in_batch: what the sum of losses is divided by, instead of their number.
            **words: ``shift_labels``, labels that were shifted before, instead. No name of its own:
                trainers take every argument with ``label`` in it for one that they must give.

        The other arguments are those of :meth:`HopeModel.forward`.

        Raises:
            ValueError: naming the argument.
            TypeError: for one that is not there.
        """
        shift_labels = words.pop("shift_labels", None)
        if words:
            raise TypeError(f"forward() got an unexpected keyword argument {min(words)!r}")
        returned = wanted(return_dict, self.config.return_dict)
        if labels is not None or shift_labels is not None:
            learns = self.language_model.config.learns_from_loss
            for name, given in (("labels", labels), ("shift_labels", shift_labels)):
                if given is not None and (input_ids is None or given.shape != input_ids.shape):
                    raise ValueError(f"{name}: expected the shape of input_ids, got {given.shape}")
            if isinstance(logits_to_keep, Tensor) or logits_to_keep != 0:
                raise ValueError("logits_to_keep: expected 0, since a loss needs all logits")
            if learns and (output_hidden_states or shift_labels is not None):
                name = "shift_labels" if shift_labels is not None else "output_hidden_states"
                raise ValueError(f"{name}: expected none, as levels here learn from labels' loss")
            if learns and labels is not None:
                made = self._observe(
                    labels, num_items_in_batch,
                    *self.model.arguments(input_ids, attention_mask, past_key_values, inputs_embeds,
                                          use_cache, output_attentions),
                )  # fmt: skip
                return made if returned else made.to_tuple()
        read = self.model(
            input_ids, attention_mask, past_key_values, inputs_embeds, use_cache,
            output_attentions, output_hidden_states, return_dict=True,
        )  # fmt: skip
        kept = logits_to_keep
        if isinstance(kept, int):
            kept = slice(-kept if kept else None, None)
        logits = self.lm_head(read.last_hidden_state[:, kept])
        loss = None
        if shift_labels is None and labels is not None and input_ids is not None:
            mask = _token_mask(attention_mask, input_ids, None, read=past_key_values)
            shift_labels = _shifted(labels, mask)
        if shift_labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch, shift_labels=shift_labels,
            )  # fmt: skip
        made = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=read.past_key_values,
            hidden_states=read.hidden_states,
        )  # fmt: skip
        return made if returned else made.to_tuple()

    def get_output_embeddings(self) -> nn.Module:
        """The one table, as what predicts."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Another module on the one table."""
        self.lm_head = new_embeddings

    def _observe(
        self, labels: Tensor, count: Any, ids: Tensor, mask: Tensor | None, cache: HopeCache | None
    ) -> CausalLMOutputWithPast:
        """The loss of a model whose levels learn from it."""
        if self.model.gradient_checkpointing:
            raise ValueError(
                "gradient checkpointing: expected none, since levels that learn from the loss take "
                "its gradient chunk by chunk within the forward pass"
            )
        own = labels != IGNORED
        if bool((own & (labels != ids)).any()):
            raise ValueError(
                "labels: expected input_ids or -100, since levels learn to predict the text itself"
            )
        seen = observe(self.language_model, ids, None if cache is None else cache.state, mask=mask)
        tokens = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        counted = seen.scored & own & tokens & (tokens.cumsum(1) > 1)
        number = counted.sum().clamp(min=1) if count is None else count
        loss = seen.nats.masked_fill(~counted, 0.0).sum() / number
        if cache is not None:
            assert seen.state.observed is not None
            read = tokens.sum(1).cpu()
            cache.advance(seen.state, seen.state.observed.hidden, read, ids.shape[1])
        return CausalLMOutputWithPast(loss=loss, past_key_values=cache)


def wanted(given: bool | None, default: bool | None) -> bool:
    """The caller's word, or the configuration's."""
    return bool(default if given is None else given)


def _token_mask(
    attention_mask: Any, ids: Tensor, cache: HopeCache | None, *, read: HopeCache | None = None
) -> Tensor | None:
    """``(B, T)`` bool of the new columns; ``read`` is a cache that holds them already."""
    if attention_mask is None:
        return None
    T = ids.shape[1]
    past = read.columns - T if read is not None else 0 if cache is None else cache.columns
    if (
        not isinstance(attention_mask, Tensor)
        or attention_mask.dim() != 2
        or attention_mask.shape[0] != ids.shape[0]
        or attention_mask.shape[1] not in (T, past + T)
    ):
        got = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else attention_mask
        wide = f"{T} or {past + T}" if past else str(T)
        raise ValueError(f"attention_mask: expected shape ({ids.shape[0]}, {wide}), got {got}")
    return attention_mask[:, -T:].to(torch.bool)


def _shifted(labels: Tensor, mask: Tensor | None) -> Tensor:
    """At every token the label of the next one, wherever it stands; -100 at padding."""
    packed = pack(labels, mask)
    after = torch.full_like(packed.ids, IGNORED)
    after[:, :-1] = packed.ids[:, 1:]
    place = torch.arange(labels.shape[1])[None]
    after[(place >= packed.lengths[:, None] - 1).to(after.device)] = IGNORED
    return packed.back(after)
