"""Whose inner state it is: digests of a model and of a tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from nestling.data import Tokenizer
from nestling.session.readable import Readable
from nestling.session.save import Identity, digest_of
from nestling.storage.weights import weights


def identify(model: Readable, tokenizer: Tokenizer, checkpoint: str | None) -> Identity:
    """The identity of the states that this model makes of texts in these tokens."""
    definition = tokenizer.to_json()
    return Identity(
        model=model_digest(model),
        preset=model.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tokenizer="bytes" if definition is None else digest_of(definition.encode()),
        tokenizer_name=tokenizer.name,
        checkpoint=checkpoint,
    )


def model_digest(model: Readable) -> str:
    """SHA-256 over the configuration and every weight: names, dtypes, shapes and bits.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> before = model_digest(model)
    >>> with torch.no_grad():
    ...     _ = model.embedding.weight[3, 5].add_(1e-3)
    >>> model_digest(model) == before
    False
    """
    hashed = hashlib.sha256(json.dumps(model.definition(), sort_keys=True).encode())
    _add_weights(hashed, model)
    return hashed.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over every weight: names, dtypes, shapes and bits.

    >>> weights_digest(nn.Linear(2, 3)) == weights_digest(nn.Linear(2, 3))
    False
    """
    hashed = hashlib.sha256()
    _add_weights(hashed, model)
    return hashed.hexdigest()


def _add_weights(hashed: Any, model: Any) -> None:
    for name, tensor in sorted(weights(model).items()):
        hashed.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        hashed.update(flat.numpy().data)


def version_of(model: Any) -> tuple[tuple[int, int], ...]:
    """Changes whenever a weight is written: what is cheap to compare before every save."""
    return tuple((tensor.data_ptr(), tensor._version) for tensor in weights(model).values())
