"""``--set name=value``: any number of a model from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nestling.models import ModelConfig, configure


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """``["width=64", "periods=[1,8]"]`` as keyword arguments; values are JSON or plain words.

    Raises:
        ValueError: if an item is not ``name=value``.

    >>> parse_overrides(["width=64", "periods=[1,8]", "adaptive=memory"])
    {'width': 64, 'periods': (1, 8), 'adaptive': 'memory'}
    """
    found: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set: expected name=value, got {item!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        found[name.strip()] = tuple(value) if isinstance(value, list) else value
    return found


def configured(preset: str, size: str, overrides: dict[str, Any]) -> ModelConfig:
    """The configuration of a preset, or an error that says which value does not fit.

    Raises:
        ValueError: for an unknown name, or a value of the wrong kind.
    """
    try:
        return configure(preset, size=size, **overrides)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"--set: {overrides} does not fit {preset!r}: {error}") from error
