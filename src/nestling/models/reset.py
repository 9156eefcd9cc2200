"""Forgetting on purpose: parts of a state, or rows of it, back where a text starts.

    state.M  <-  M_0      for the chosen memories M and rows

With ``kept`` and the rules' own decay the third way in which something is forgotten, and the only
one that is asked for: at a document's end, say, the fast memories start anew and the slow ones go
on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nestling.memory import MemoryState, flatten
from nestling.memory.state import children
from nestling.models.language_model import LanguageModel
from nestling.models.observe import settled
from nestling.models.state import ModelState
from nestling.shapes import Tensor


def reset(
    model: LanguageModel,
    state: ModelState,
    names: Sequence[str] | None = None,
    *,
    rows: Tensor | None = None,
) -> ModelState:
    """The state with these memories as before the first token, and everything else as it was.

    What was observed and not yet written counts, as when a text ends (:func:`settled`).

    Args:
        model: whose state it is.
        state: of a text that was read; not changed.
        names: paths in the state, each with all that is below it: ``"blocks.0.mixer"``,
            ``"blocks.1.continuum.levels.2"``; all if ``None``.
        rows: ``(B,)`` bool, the rows that forget; all if ``None``.

    Raises:
        ValueError: if a name is no part of the state, or ``rows`` is not one bool for each row.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1, periods=(2, 4), regime="in_context")
    >>> _, state = model(torch.arange(12)[None])
    >>> slow_stays = reset(model, state, ["blocks.0.mixer", "blocks.0.continuum.levels.0"])
    >>> [float(moved) > 0 for moved in model.liveness(model.initial_state(1), slow_stays).values()]
    [False, False, False, False, False, False, True]
    """
    batch = state.blocks[0].mixer.memory.batch
    if rows is not None and (rows.dtype != torch.bool or rows.shape != (batch,)):
        raise ValueError(
            f"rows: expected bool of shape ({batch},), got {rows.dtype} {tuple(rows.shape)}"
        )
    state = settled(model, state)
    fresh = model.initial_state(batch)
    known = {*flatten(state), *flatten(fresh)}
    for name in names or ():
        if not any(_below(path, name) for path in known):
            parts = sorted({".".join(path.split(".")[:3]) for path in known})
            raise ValueError(f"names: the state has no {name!r}, expected a path such as {parts}")
    chosen = None if names is None else tuple(names)
    return _merged(state, fresh, "", chosen, rows)


def _below(path: str, name: str) -> bool:
    return f"{path}.".startswith(f"{name}.")


def _merged(
    old: Any, new: Any, path: str, names: tuple[str, ...] | None, rows: Tensor | None
) -> Any:
    if names is None or any(_below(path, name) for name in names):
        return new if rows is None else _rows(old, new, rows)
    if isinstance(old, Tensor) or old is None:
        return old
    other = dict(children(new))
    items = {
        name: _merged(item, other.get(name), f"{path}.{name}" if path else name, names, rows)
        for name, item in children(old)
    }
    return _like(old, items)


def _rows(old: Any, new: Any, rows: Tensor) -> Any:
    """``new`` in some rows, ``old`` in the others."""
    if isinstance(old, Tensor):
        assert isinstance(new, Tensor)
        if new.shape != old.shape:  # attention: pairs that a row does not have are zero
            wider = old.new_zeros(old.shape)
            wider[tuple(slice(size) for size in new.shape)] = new
            new = wider
        chosen = rows.to(old.device).reshape(-1, *[1] * (old.dim() - 1))
        return torch.where(chosen, new, old)
    if isinstance(old, MemoryState) and isinstance(new, MemoryState):
        # A chunk that is open in other rows, or an initial memory that the weights tell.
        parts = {
            name: new.weights
            for name in ("anchor", "initial")
            if getattr(old, name) is not None and getattr(new, name) is None
        }
        new = dataclasses.replace(new, **parts)
    other = dict(children(new))
    return _like(old, {name: _rows(item, other[name], rows) for name, item in children(old)})


def _like(old: Any, items: Mapping[str, Any]) -> Any:
    if dataclasses.is_dataclass(old) and not isinstance(old, type):
        return dataclasses.replace(old, **items)
    if isinstance(old, Mapping):
        return dict(items)
    return type(old)(items.values()) if isinstance(old, tuple | list) else old
