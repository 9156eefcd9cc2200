"""What the inner state of a model may look like, found by feeding it two tokens.

Nothing here knows the parts of a state. A path, a dtype or an axis that is the same before, after
one and after two tokens belongs to the model; an axis that differs grows with the text; a part
that is there only sometimes (a chunk that is open) is optional. A state from a file must fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from nestling.levels import Component
from nestling.memory import flatten, map_tensors, unflatten
from nestling.memory.state import children
from nestling.session.readable import Readable
from nestling.session.save import Part
from nestling.session.sealed import SessionError
from nestling.shapes import Tensor


class Outline:
    """The tensors that a model's state may consist of.

    Args:
        model: on any device; it is fed two tokens, which leave no trace.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> outline = Outline(model)
    >>> state = outline.restore(flatten(model.initial_state(1)), position=0)
    >>> torch.equal(state.blocks[0].mixer.memory.position, torch.tensor([0]))
    True
    """

    @torch.no_grad()
    def __init__(self, model: Readable):
        self.model = model
        weight = next(model.parameters())
        self.device = weight.device
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        fresh = model.initial_state(1)
        logits, first = model.read_on(token, fresh)
        self.logits = logits[0]
        self.probes: list[Any] = [fresh, first, model.read_on(token, first)[1]]
        size = model.chunk_size
        if size is not None:  # the state that a chunk started from grows from chunk to chunk
            self.probes.insert(0, model.read_on(token.expand(1, size + 1))[1])
        self.seen: dict[str, list[Tensor]] = {}
        for probe in self.probes:
            for path, tensor in flatten(probe).items():
                self.seen.setdefault(path, []).append(tensor)

    def restore(self, tensors: Mapping[str, Tensor], *, position: int) -> Any:
        """The state that consists of ``tensors``, on the model's device.

        Raises:
            SessionError: naming the tensor that is missing, unknown, not finite, or of another
                dtype or shape than the model's; or if the model cannot read on from it.
        """
        placed = {}
        for path, tensor in tensors.items():
            self._check(path, tensor, position)
            placed[path] = self._place(path, tensor)
        try:
            state = unflatten(template(self.probes, placed), placed)
        except ValueError as error:
            raise SessionError(f"state: does not fit the model: {error}") from error
        unknown = tensors.keys() - flatten(state).keys()
        if unknown:
            raise SessionError(f"state: the model does not know {min(unknown)!r}")
        self._try(state)
        return state

    def growing(self, path: str) -> tuple[int, ...]:
        """The axes of a tensor that get longer with the text."""
        shapes = [tensor.shape for tensor in self.seen.get(path, ())]
        if len({len(shape) for shape in shapes}) != 1:
            return ()
        return tuple(axis for axis, sizes in enumerate(zip(*shapes, strict=True))
                     if len(set(sizes)) > 1)  # fmt: skip

    def parts(self, state: Any, *, position: int) -> tuple[Part, ...]:
        """What takes how much memory, and whether it grows with the text.

        An axis that once grew and is now shorter than the text has come to its end (a window).
        """
        components = self.model.components()
        found: dict[tuple[str, str], Part] = {}
        for path, tensor in flatten(state).items():
            owner = owner_of(path, components)
            block, name = split_block(owner)
            size = tensor.numel() * tensor.element_size()
            axes = [a for a in self.growing(path) if tensor.shape[a] >= position]
            grows = 0
            if axes:
                one, two = (t.numel() * t.element_size() for t in self.seen[path][-2:])
                grows = two - one
            if not size and not grows:  # a layer without what other layers carry
                continue
            fastest, slowest = periods(owner, components)
            norm = float(tensor.double().norm()) if tensor.is_floating_point() else None
            part = Part(name=name, count=1, fastest=fastest, slowest=slowest, bytes=size,
                        grows=grows, norm=norm)  # fmt: skip
            old = found.get((block, name))
            found[block, name] = part if old is None else _added(old, part, count=1)
        return _joined(found)

    def _check(self, path: str, tensor: Tensor, position: int) -> None:
        where = f"state: {path}"
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise SessionError(f"{where} is not finite")
        known = self.seen.get(path)
        if known is None:  # filled later than after two tokens; whether it fits, _try will see
            return
        dtypes = {str(one.dtype) for one in known}
        if str(tensor.dtype) not in dtypes:
            raise SessionError(
                f"{where}: expected {' or '.join(sorted(dtypes))}, got {tensor.dtype}"
            )
        expected, axes = known[0].shape, self.growing(path)
        fits = len(tensor.shape) == len(expected) and all(
            got == size if axis not in axes else got <= position
            for axis, (got, size) in enumerate(zip(tensor.shape, expected, strict=True))
        )
        if not fits:
            wanted = [f"0 to {position}" if a in axes else n for a, n in enumerate(expected)]
            raise SessionError(f"{where}: expected shape {wanted}, got {list(tensor.shape)}")

    def _place(self, path: str, tensor: Tensor) -> Tensor:
        known = self.seen.get(path)
        if known is not None:
            return tensor.to(known[-1].device)
        # Clocks decide control flow and live on the CPU, everything else with the weights.
        return tensor.to(self.device) if tensor.is_floating_point() else tensor

    @torch.no_grad()
    def _try(self, state: Any) -> None:
        """Read one token from it: what still does not fit becomes an error here and not later."""
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        try:
            self.model.read_on(token, state)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            told = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SessionError(f"state: the model cannot read on from it: {told}") from error


def settled(state: Any) -> Any:
    """The same numbers in memory of their own, laid out as they come back from a file.

    A product may add in another order for another layout or alignment, so this is what makes a
    session that was closed and opened equal to one that was not, to the last bit.
    """
    return map_tensors(
        lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format), state
    )


def owner_of(path: str, components: Sequence[Component]) -> str:
    """The component that a tensor belongs to by its path, or else its part of the state."""
    names = [c.name for c in components if path == c.name or path.startswith(c.name + ".")]
    return max(names, key=len) if names else ".".join(path.split(".")[:4])


def periods(owner: str, components: Sequence[Component]) -> tuple[int | None, int | None]:
    """Fastest and slowest period of the components that are nearest to ``owner`` by their path."""
    parts = owner.split(".")

    def near(component: Component) -> int:
        shared = 0
        for ours, other in zip(parts, component.name.split("."), strict=False):
            if ours != other:
                break
            shared += 1
        return shared

    nearest = max(map(near, components))
    levels = [c.level for c in components if near(c) == nearest]
    ranked = sorted(levels, key=lambda level: level.sort_key)
    return ranked[0].period, ranked[-1].period


def split_block(name: str) -> tuple[str, str]:
    """``("blocks.0", "mixer.memory")``; the first is empty for what is in no block."""
    head, _, rest = name.partition(".")
    index, _, rest = rest.partition(".")
    return (f"{head}.{index}", rest) if index.isdecimal() and rest else ("", name)


def template(probes: Sequence[Any], paths: Iterable[str], prefix: str = "") -> Any:
    """A value for :func:`unflatten`: at every place a probe that has tensors there if ``paths`` do.

    What some probes lack is optional and left out without a path below it; what none of them lacks
    stays, so that its absence is noticed.
    """
    inside = [path for path in paths if not prefix or f"{path}.".startswith(f"{prefix}.")]
    whole = [probe for probe in probes if flatten(probe)]
    if not inside or not whole:
        return next((probe for probe in probes if not flatten(probe)), probes[0])
    first, items = whole[0], {}
    if not dataclasses.is_dataclass(first) and not isinstance(first, Mapping | tuple | list):
        return first
    for one in whole:
        for name, value in children(one):
            items.setdefault(name, []).append(value)
    kept = {}
    for name, found in items.items():
        below = f"{prefix}.{name}" if prefix else name
        if len(found) == len(whole) or any(f"{path}.".startswith(f"{below}.") for path in inside):
            kept[name] = template(found, inside, below)
    if dataclasses.is_dataclass(first):
        return dataclasses.replace(cast(Any, first), **kept)
    return kept if isinstance(first, Mapping) else type(first)(kept.values())


def _joined(found: Mapping[tuple[str, str], Part]) -> tuple[Part, ...]:
    joined: dict[tuple[str, int | None, int | None], Part] = {}
    for part in found.values():
        key = (part.name, part.fastest, part.slowest)
        old = joined.get(key)
        count = part.count + (old.count if old else 0)
        joined[key] = part if old is None else _added(old, part, count=count)
    return tuple(joined.values())


def _added(one: Part, other: Part, *, count: int) -> Part:
    norms = [part.norm for part in (one, other) if part.norm is not None]
    return dataclasses.replace(
        one, count=count, bytes=one.bytes + other.bytes, grows=one.grows + other.grows,
        norm=math.hypot(*norms) if norms else None,
    )  # fmt: skip
