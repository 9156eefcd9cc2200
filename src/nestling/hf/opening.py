"""Any model that can be evaluated, from the disk or in memory, as one value.

run, step-*            ours, behind the door of transformers
nestling.json          a stack of levels on a pre-trained model
config.json            any model for causal language modelling that transformers loads
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from nestling.data import ByteTokenizer, Tokenizer
from nestling.hf.modeling import HopeForCausalLM
from nestling.hf.scoring import Learner, Ours, Stacked
from nestling.hf.stacked import StackedModel
from nestling.hf.tokenizer import byte_tokenizer
from nestling.models import LanguageModel
from nestling.storage import load_model
from nestling.storage.checkpoint import MANIFEST, resolve, steps

STACK = "nestling.json"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model and what belongs to it.

    Attributes:
        model: of transformers; of a stack, the model under it.
        tokenizer: of transformers.
        learner: what has an inner state; ``None`` if nothing has.
        ours: the tokenizer as sessions know it, if it is not that of transformers.
    """

    model: Any
    tokenizer: Any
    learner: Learner | None
    ours: Tokenizer | None = None

    @property
    def kind(self) -> str:
        """What it is, for a person."""
        name = type(self.model).__name__
        if isinstance(self.learner, Ours):
            return f"{self.learner.module.config.preset} (nestling)"
        return f"{name} with levels" if isinstance(self.learner, Stacked) else name


def opened(model: Any, tokenizer: Any = None, ours: Tokenizer | None = None) -> Opened:
    """A model in memory.

    Args:
        model: ours, with or without the door of transformers, stacked, or any of transformers;
            also behind an adapter of peft.
        tokenizer: of transformers; bytes where the model knows just these.
        ours: the same as sessions know it.

    Raises:
        ValueError: if it is no model, it needs a tokenizer, or it is an encoder.

    >>> from nestling.models import build
    >>> opened(build("hope", width=16, heads=2, layers=1)).kind
    'hope (nestling)'
    """
    learner: Learner | None = None
    if isinstance(model, LanguageModel):
        model = HopeForCausalLM.from_language_model(model)
    if isinstance(model, StackedModel):
        if not model.stack.base.decoder:
            raise ValueError(
                f"model: {type(model.base).__name__} is an encoder, expected a decoder"
            )
        learner, model = Stacked(model), model.base
    elif isinstance(model, torch.nn.Module):
        own = [part for part in model.modules() if isinstance(part, LanguageModel)]
        learner = Ours(own[0]) if own else None
    if not hasattr(model, "config") or not hasattr(model, "generate"):
        raise ValueError(f"model: expected one that generates text, got {type(model).__name__}")
    return Opened(model=model, tokenizer=_tokenizer(tokenizer, model), learner=learner, ours=ours)


def open_model(
    path: str | Path, *, tokenizer: str | Path | None = None, device: str | torch.device = "cpu"
) -> Opened:
    """A model on the disk.

    Args:
        path: a run, a ``step-*`` directory, a stacked directory, or one of transformers.
        tokenizer: a directory to take it from instead.
        device: where it computes.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"model: no such directory: {str(path)!r}")
    text = None if tokenizer is None else _load_tokenizer(Path(tokenizer))
    if not (path / "config.json").is_file():
        if not ((path / MANIFEST).exists() or steps(path)):
            raise ValueError(
                f"model: {str(path)!r} holds neither a run of nestling (step-*) nor a model of "
                f"transformers (config.json, with {STACK} if it is stacked)"
            )
        model, own = load_model(resolve(path), device=device)
        return opened(model, text or as_transformers(own), None if text else own)
    text = text or _load_tokenizer(path, needed=False)
    if (path / STACK).is_file():
        from nestling.hf.stack_files import load_stacked

        return opened(load_stacked(path, device=device), text)
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"model: {str(path)!r} cannot be loaded: {error}") from error
    return opened(found.to(device), text)


def as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """One of our tokenizers as one of transformers.

    >>> as_transformers(ByteTokenizer())("hi").input_ids
    [104, 105]
    """
    text = tokenizer.to_json()
    if text is None:
        return byte_tokenizer()
    backend = Backend.from_str(text)
    end = None if tokenizer.separator is None else backend.id_to_token(tokenizer.separator)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=end, clean_up_tokenization_spaces=False
    )


def _tokenizer(given: Any, model: Any) -> Any:
    """A copy that others may change, with what lm-eval begins a text and fills a row with."""
    size = model.config.get_text_config().vocab_size
    if given is None:
        if size != ByteTokenizer.vocab_size:
            raise ValueError(
                f"tokenizer: expected that of the model, which knows {size} ids and not 256 bytes"
            )
        return byte_tokenizer()
    made = copy.deepcopy(given)
    start = made.eos_token if made.bos_token is None else made.bos_token
    if start is None:
        raise ValueError(
            "tokenizer: expected one with a token for the begin or the end of a text, which "
            "lm-eval puts in front of a text without context"
        )
    if made.eos_token is None:
        made.eos_token = start
    if made.pad_token is None:
        made.pad_token = made.eos_token
    return made


def _load_tokenizer(path: Path, *, needed: bool = True) -> Any:
    if not needed and not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    ):
        return None
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer: {str(path)!r} holds none: {error}") from error
