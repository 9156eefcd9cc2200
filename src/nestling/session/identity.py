"""Whose inner state it is: digests of a model and of a tokenizer."""

from __future__ import annotations

import hashlib
import json

import torch

from nestling.data import Tokenizer
from nestling.models import LanguageModel
from nestling.session.save import Identity, digest_of
from nestling.storage.weights import weights


def identify(model: LanguageModel, tokenizer: Tokenizer, checkpoint: str | None) -> Identity:
    """The identity of the states that this model makes of texts in these tokens."""
    definition = tokenizer.to_json()
    return Identity(
        model=model_digest(model),
        preset=model.config.preset,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokenizer="bytes" if definition is None else digest_of(definition.encode()),
        tokenizer_name=tokenizer.name,
        checkpoint=checkpoint,
    )


def model_digest(model: LanguageModel) -> str:
    """SHA-256 over the configuration and every weight: names, dtypes, shapes and bits.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> before = model_digest(model)
    >>> with torch.no_grad():
    ...     _ = model.embedding.weight[3, 5].add_(1e-3)
    >>> model_digest(model) == before
    False
    """
    hashed = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, tensor in sorted(weights(model).items()):
        hashed.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hashed.update(flat.numpy().data)
    return hashed.hexdigest()


def version_of(model: LanguageModel) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is written: what is cheap to compare before every save."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in weights(model).values())
