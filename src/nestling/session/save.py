"""The header of a save: whose state it is, where it stands, and what its tensors must be.

state.safetensors   every tensor of the inner state by its path, and the last prediction
state.json          this header, sealed: it names the model and the digest of the tensors
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nestling.session.sealed import SessionError

FORMAT = "nestling-session"
SCHEMA = 1
HIGHEST = 2**53
"""Largest whole number in a header: every JSON reader keeps it exactly."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Whose inner state it is.

    Attributes:
        model: SHA-256 over the configuration and every weight.
        preset: the model's name, for people.
        parameters: the model's size, for people.
        tokenizer: SHA-256 of the tokenizer's definition, ``"bytes"`` for plain bytes.
        tokenizer_name: for people.
        checkpoint: where the model was loaded from; ``None`` if it was given as an object.
    """

    model: str
    preset: str
    parameters: int
    tokenizer: str
    tokenizer_name: str
    checkpoint: str | None


@dataclass(frozen=True, kw_only=True)
class Part:
    """One kind of memory in the state, equal ones of different blocks together.

    Attributes:
        name: path without the block, for example ``mixer.memory``.
        count: how many blocks have it.
        fastest, slowest: periods of its levels in tokens; ``None``: never.
        bytes: what it takes.
        grows: bytes that every further token adds; 0: it keeps its size whatever is read.
        norm: root of the sum of the squares of its numbers; 0: it holds nothing. ``None`` for
            clocks.
    """

    name: str
    count: int
    fastest: int | None
    slowest: int | None
    bytes: int
    grows: int
    norm: float | None


@dataclass(frozen=True, kw_only=True)
class Save:
    """One saved state, without its tensors.

    Attributes:
        number: of this save in its session, never used twice.
        identity: whose state it is.
        position: tokens read and written since the session began.
        clocks: every integer tensor of the state by its path.
        entries: dtype and shape of every tensor by its name in the file.
        bytes: size of the file of tensors.
        sha256: of that file.
        parts: what takes how much memory.
        saved_at: UTC, ISO 8601.
        note: what happened before it.
        nestling: the version that wrote it.
    """

    number: int
    identity: Identity
    position: int
    clocks: dict[str, list[int]]
    entries: dict[str, list[Any]]
    bytes: int
    sha256: str
    parts: tuple[Part, ...]
    saved_at: str
    note: str
    nestling: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = dataclasses.asdict(self)
        return {"format": FORMAT, "schema": SCHEMA, **values, "parts": list(values["parts"])}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str | Path) -> Save:
        """Read what :meth:`to_dict` wrote, trusting none of it.

        Raises:
            SessionError: naming ``where`` and the first value that is not what it must be.
        """
        check_format(values, where)
        fields = _checked(values, _SAVE, where, skip=("format", "schema"))
        identity = Identity(**_checked(fields["identity"], _IDENTITY, where))
        parts = tuple(Part(**_checked(part, _PART, where)) for part in fields["parts"])
        return cls(**{**fields, "identity": identity, "parts": parts})

    @property
    def grows(self) -> bool:
        """Whether some part gets larger with every token."""
        return any(part.grows for part in self.parts)


def check_format(values: dict[str, Any], where: str | Path) -> None:
    """Refuse what is not ours or of another schema.

    Raises:
        SessionError: naming ``where`` and what it found.
    """
    if values.get("format") != FORMAT:
        raise SessionError(f"{where}: not a file of a nestling session: 'format' differs")
    schema = values.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        raise SessionError(f"{where}: schema {schema!r}; this version reads schema {SCHEMA}")


def is_count(value: Any) -> bool:
    """Whether it is a whole number from 0 on; True and 1.0 are none."""
    return type(value) is int and 0 <= value <= HIGHEST


def is_digest(value: Any) -> bool:
    """Whether it is a SHA-256 in hexadecimal."""
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def digest_of(data: bytes | memoryview) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _is_line(value: Any) -> bool:
    # Shown on terminals: no control characters, no half characters, no end.
    return isinstance(value, str) and len(value) <= 4096 and value.isprintable()


def _is_period(value: Any) -> bool:
    return value is None or (is_count(value) and value >= 1)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(is_count(item) for item in value)


def _is_clocks(value: Any) -> bool:
    # Clocks count, but nothing forbids a model an integer below zero.
    return isinstance(value, dict) and all(
        _is_line(name)
        and isinstance(items, list)
        and all(type(item) is int and abs(item) <= HIGHEST for item in items)
        for name, items in value.items()
    )


def _is_entries(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_line(name)
        and isinstance(entry, list)
        and len(entry) == 2
        and _is_line(entry[0])
        and _is_counts(entry[1])
        for name, entry in value.items()
    )


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


_IDENTITY: dict[str, Callable[[Any], bool]] = {
    "model": is_digest,
    "preset": _is_line,
    "parameters": is_count,
    "tokenizer": lambda value: value == "bytes" or is_digest(value),
    "tokenizer_name": _is_line,
    "checkpoint": lambda value: value is None or _is_line(value),
}
_PART: dict[str, Callable[[Any], bool]] = {
    "name": _is_line,
    "count": is_count,
    "fastest": _is_period,
    "slowest": _is_period,
    "bytes": is_count,
    "grows": is_count,
    "norm": lambda value: value is None or (type(value) is float and 0 <= value < math.inf),
}
_SAVE: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: is_count(value) and value >= 1,
    "identity": lambda value: isinstance(value, dict),
    "position": is_count,
    "clocks": _is_clocks,
    "entries": _is_entries,
    "bytes": is_count,
    "sha256": is_digest,
    "parts": _are_objects,
    "saved_at": _is_line,
    "note": _is_line,
    "nestling": _is_line,
}


def _checked(
    values: dict[str, Any],
    rules: dict[str, Callable[[Any], bool]],
    where: str | Path,
    skip: tuple[str, ...] = (),
) -> dict[str, Any]:
    fields = {name: value for name, value in values.items() if name not in skip}
    if fields.keys() != rules.keys():
        raise SessionError(
            f"{where}: damaged: expected the fields {sorted(rules)}, got {sorted(fields)}"
        )
    for name, fits in rules.items():
        if not fits(fields[name]):
            value = fields[name]
            told = repr(value)[:60] if isinstance(value, str | int) else f"a {type(value).__name__}"
            raise SessionError(f"{where}: {name}: not a value that it can have: {told}")
    return fields
