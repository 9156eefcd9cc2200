"""Nested values as safetensors and JSON: tensors to a flat dict, everything else to plain values.

    {"a": [tensor, 1.5]}   <->   {"a": [{"$tensor": "a/0"}, 1.5]},  {"a/0": tensor}

Nothing else is allowed in: what cannot be written this way is refused by its path, so a checkpoint
never holds code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nestling.shapes import Tensor

MARK = "$tensor"


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """The JSON form of ``value``; its tensors are added to ``tensors``.

    Raises:
        ValueError: naming the path of something that is neither a tensor nor plain.

    >>> import torch
    >>> tensors = {}
    >>> pack({"m": torch.ones(2), "beta": (0.9, None)}, tensors)
    {'m': {'$tensor': 'm'}, 'beta': [0.9, None]}
    >>> tensors
    {'m': tensor([1., 1.])}
    """
    if isinstance(value, Tensor):
        if path in tensors:
            raise ValueError(f"{path}: two tensors of this path")
        tensors[path] = value.detach()
        return {MARK: path}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [pack(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) and key != MARK for key in value):
            raise ValueError(f"{path or 'value'}: expected names as keys, got {list(value)[:3]}")
        return {
            key: pack(item, tensors, f"{path}/{key}" if path else key)
            for key, item in value.items()
        }
    raise ValueError(f"{path}: a {type(value).__name__} cannot be saved without pickle")


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put the tensors back; tuples come back as lists.

    Raises:
        ValueError: naming a tensor that is missing.
    """
    if isinstance(value, Mapping):
        if set(value) == {MARK}:
            if value[MARK] not in tensors:
                raise ValueError(f"tensors: expected {value[MARK]!r}, which is not there")
            return tensors[value[MARK]]
        return {key: unpack(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    return value


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, contiguous and none a view of another's memory, as safetensors wants it."""
    seen: set[int] = set()
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.numel() * own.element_size():
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        result[name] = own
    return result
