"""A model of ours as a configuration of transformers: one ``model_type`` for all presets.

config.json   {"model_type": "nestling", "nestling": {our ModelConfig}, "vocab_size": ..., ...}

The field ``nestling`` is the definition; the names that the rest of transformers looks for
(``hidden_size`` and so on) are read from it and written beside it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from nestling.models import ModelConfig, configure
from nestling.models.presets import LEVELS, MIXERS

STANDARD = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
}
"""The names of transformers and ours."""


class HopeConfig(PreTrainedConfig):
    """What a model is, for ``AutoConfig`` and ``config.json``.

    Args:
        preset: ``"hope"``, ``"hope_attention"``, ``"transformer"``, ``"titans"``, ...
        size: ``"tiny"`` to ``"1.3b"``.
        nestling: the definition itself, as :meth:`ModelConfig.to_dict` writes it, instead of both.
        **words: overrides as in :func:`nestling.models.configure` (``vocab_size``, ``width``,
            ``periods``, ``regime``, ...), the names of ``STANDARD``, and the fields of every
            ``PreTrainedConfig`` (``eos_token_id``, ``dtype``, ``use_cache``, ...).

    Raises:
        ValueError: for an unknown preset, size or word, naming it; if a standard name contradicts
            the definition; or for untied embeddings, which our models do not have.

    >>> config = HopeConfig("hope", width=64, heads=2, eos_token_id=0)
    >>> config.hidden_size, config.num_hidden_layers, config.vocab_size, config.eos_token_id
    (64, 2, 256, 0)
    >>> HopeConfig.from_dict(config.to_dict()).to_model_config() == config.to_model_config()
    True
    """

    model_type = "nestling"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    def __init__(
        self,
        preset: str | None = None,
        size: str | None = None,
        *,
        nestling: dict[str, Any] | None = None,
        **words: Any,
    ) -> None:
        if nestling is None:
            ours, theirs = _split(preset or "hope", words)
            made = configure(preset or "hope", size=size or "tiny", **ours)
        else:
            if preset is not None or size is not None:
                raise ValueError("preset, size: expected none beside a definition ('nestling')")
            made, theirs = ModelConfig.from_dict(nestling), dict(words)
            _agree(made, theirs)
        if not theirs.pop("tie_word_embeddings", True):
            raise ValueError("tie_word_embeddings: expected True: one table is read and written")
        self.nestling = made.to_dict()
        self.tie_word_embeddings = True
        self.use_cache = theirs.pop("use_cache", True)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(self, name, theirs.pop(name, None))
        super().__init__(**theirs)

    @classmethod
    def from_model_config(cls, config: ModelConfig, **words: Any) -> HopeConfig:
        """Of a model that is described already."""
        return cls(nestling=config.to_dict(), **words)

    def to_model_config(self) -> ModelConfig:
        """What :class:`nestling.models.LanguageModel` is built from.

        Raises:
            ValueError: if a field was set to what does not fit.
        """
        return ModelConfig.from_dict(self.nestling)

    @property
    def learns_from_loss(self) -> bool:
        """Whether a level is written by the next-token loss."""
        return self.to_model_config().learns_from_loss

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the standard names among them."""
        return {**super().to_dict(), **{name: getattr(self, name) for name in STANDARD}}

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.nestling["vocab_size"]

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        self._set("vocab_size", value)

    @property
    def hidden_size(self) -> int:
        """D of the residual stream."""
        return self.nestling["width"]

    @hidden_size.setter
    def hidden_size(self, value: int) -> None:
        self._set("width", value)

    @property
    def num_hidden_layers(self) -> int:
        """Blocks."""
        return self.nestling["layers"]

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        self._set("layers", value)

    @property
    def num_attention_heads(self) -> int:
        """H, of the sequence layer whatever it is."""
        return self.nestling["heads"]

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        self._set("heads", value)

    def _set(self, name: str, value: int) -> None:
        self.nestling = {**self.nestling, name: value}


def _split(preset: str, words: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our words, also those that nobody knows, and those of transformers."""
    mixer = MIXERS.get(preset)
    known = {f.name for f in dataclasses.fields(ModelConfig)} | {"memory_hidden", *LEVELS}
    known |= set() if mixer is None else {f.name for f in dataclasses.fields(mixer)}
    theirs = {f.name for f in dataclasses.fields(PreTrainedConfig)} | _OTHER
    ours: dict[str, Any] = {}
    for name, value in words.items():
        own = STANDARD.get(name, name)
        if own in known or name not in theirs:
            if own in ours:
                raise ValueError(f"{name}: given twice, also as {own!r}")
            ours[own] = value
    rest = {name: value for name, value in words.items() if STANDARD.get(name, name) not in ours}
    return ours, rest


_OTHER = {
    "attn_implementation", "bos_token_id", "eos_token_id", "is_decoder", "name_or_path",
    "num_labels", "output_attentions", "pad_token_id", "task_specific_params",
    "tie_word_embeddings", "tokenizer_class", "torch_dtype", "use_cache",
}  # fmt: skip
"""Words that every configuration of transformers knows and that are no fields of it."""


def _agree(made: ModelConfig, theirs: dict[str, Any]) -> None:
    """Take the standard names out; they must say what the definition says."""
    for name, own in STANDARD.items():
        value = theirs.pop(name, None)
        if value is not None and value != getattr(made, own):
            raise ValueError(
                f"{name}: {value!r} contradicts the definition ('nestling'), which has "
                f"{getattr(made, own)!r} as {own!r}"
            )
