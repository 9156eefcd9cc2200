"""Bytes as a tokenizer of transformers, and any of its tokenizers as one of ours.

id of a token = its byte; 0 is NUL, which text does not use: end of text and padding
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nestling.data import ByteTokenizer, Tokenizer, tokenizer_from_json

NUL = "\x00"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of our byte-level models: ids are the UTF-8 bytes, 256 of them.

    What it saves is an ordinary ``tokenizer.json``: ``AutoTokenizer`` loads it, also without us.

    >>> tokenizer = byte_tokenizer()
    >>> tokenizer("né").input_ids, tokenizer.decode([110, 195, 169])
    ([110, 195, 169], 'né')
    """
    vocabulary = {NUL: 0} | {letter: byte for byte, letter in _letters().items() if byte}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=NUL, pad_token=NUL,
        padding_side="left", clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def our_tokenizer(tokenizer: Any, vocab_size: int) -> Tokenizer:
    """Whose tokens a state has read, as sessions know them.

    Args:
        tokenizer: one of ours, a fast one of transformers, or ``None`` for bytes.
        vocab_size: ids that the model knows.

    Raises:
        ValueError: for something else, or if a model of other tokens is given none.

    >>> our_tokenizer(byte_tokenizer(), 256).name
    'bytes'
    """
    if tokenizer is None:
        if vocab_size != 256:
            raise ValueError(
                f"tokenizer: expected that of the text, since the model knows {vocab_size} ids "
                "and not 256 bytes"
            )
        return ByteTokenizer()
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            "tokenizer: expected one of nestling.data or a fast one of transformers, "
            f"got {type(tokenizer).__name__}"
        )
    if backend.get_vocab() == byte_tokenizer().get_vocab():
        return ByteTokenizer()
    # Padding and truncation are set by whoever called it last; they do not belong to the text.
    backend = Backend.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    return tokenizer_from_json(backend.to_str(), getattr(tokenizer, "name_or_path", "") or "given")


def _letters() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
