"""A stacked model reads a text: cut anywhere, chunk by chunk, with the loss at hand.

A chunk ends wherever a level ends its period, and after ``config.chunk`` tokens at the latest. Its
tokens meet the keys and values of those before as they were computed, with the weights of then.
Tokens of a chunk that is not whole yet are kept and read again when it is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F

from nestling.continuum.config import writes_by_loss
from nestling.hf.adapted import Written
from nestling.hf.delta import Form
from nestling.hf.plan import Slot, StackConfig
from nestling.hf.stack_read import IGNORED, Base, Read, read_stretch, write_errors
from nestling.hf.stack_state import BlockState, Caches, OpenChunk, StackedState, stretch
from nestling.memory.state import Weights
from nestling.models.joined import Joined, Kept
from nestling.models.packing import Packed, take
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A model, its levels, and where they are.

    Attributes:
        base: the model.
        config: the levels.
        slots: of the levels in context.
        form: of what is written.
    """

    base: Base
    config: StackConfig
    slots: tuple[Slot, ...]
    form: Form

    @property
    def active(self) -> tuple[Slot, ...]:
        """Slots that are ever written."""
        levels = self.config.levels
        return tuple(slot for slot in self.slots if writes_by_loss(levels[slot.level]))

    def written(self, state: StackedState, *, every: bool = False) -> Written:
        """What is written in a state; before a level's first write, nothing.

        Args:
            state: of the text.
            every: name also the modules beside which nothing is written yet.
        """
        weights: dict[Slot, Weights] = {}
        slots: dict[str, list[Slot]] = {}
        for slot in self.active:
            some = bool(state.clocks[str(slot.level)].writes.any())
            if some:
                own = state.blocks[slot.block].levels[str(slot.level)][slot.name]
                weights[slot] = own.weights
            if some or every:
                slots.setdefault(slot.path, []).append(slot)
        return Written(form=self.form, slots=slots, weights=weights, batch=state.batch)

    def until_end(self, state: StackedState) -> Tensor:
        """``(B,)`` tokens from a chunk's start to its end, as the clocks stand."""
        sizes = torch.full((state.batch,), self.config.chunk)
        for name, clock in state.clocks.items():
            period = self.config.levels[int(name)].period
            if period is not None:
                sizes = sizes.minimum(period - clock.clock)
        return sizes


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a call of ``observe`` found.

    Attributes:
        nats: ``(B, T)`` ``-ln p`` of each token of the call, given all before it (or of its
            target, where targets are given); 0 where it was not predicted.
        scored: ``(B, T)`` bool, where it was.
        state: after the call.
    """

    nats: Tensor
    scored: Tensor
    state: StackedState

    @property
    def loss(self) -> Tensor:
        """Mean over the tokens that were predicted; 0 if none was."""
        return self.nats.sum() / self.scored.sum().clamp(min=1)


class Place(NamedTuple):
    """What attention finds: caches, tokens in them, and the next token's position."""

    caches: Caches
    held: Tensor
    position: Tensor


def observe_text(stack: Stack, state: StackedState, packed: Packed) -> Observation:
    """Read a text from left to right, score every token, and write every level."""
    state = opened(stack, state)
    seen = state.open
    assert seen is not None
    text = Joined(packed, seen.waiting, Kept(seen.ids, seen.targets, seen.count))
    at = torch.zeros_like(text.open)
    start = _start(state, seen.count)
    while True:
        sizes = stack.until_end(state)
        sizes = torch.where(at + sizes <= text.known, sizes, 0)
        if not bool(sizes.any()):
            break
        read = _read(stack, state, text, at, sizes, start, errors=bool(stack.active))
        if stack.active:
            state = write_errors(state, read, sizes, stack.form, stack.config, stack.slots)
        start = trimmed(stack, behind(start, read.caches, sizes), sizes > 0)
        at = at + sizes
    if bool(at.any()):
        logits, now = _rest(stack, state, text, at, start)
    else:
        logits, now = _new(stack, state, text)
    rest = text.end - at
    ids, targets = (take(part, at, rest, stack.config.chunk) for part in (text.ids, text.targets))
    chunk = OpenChunk(ids=ids, targets=targets, count=rest, waiting=text.waiting, logits=logits)
    nats, scored = text.collected()
    if packed.targets is not None:
        scored = scored & packed.back(packed.targets != IGNORED).to(scored.device)
    return Observation(nats=nats, scored=scored, state=_at(state, now, chunk))


def observe_passage(stack: Stack, state: StackedState, packed: Packed) -> Observation:
    """An encoder reads a text as a whole: one chunk, whose targets are given."""
    assert packed.targets is not None
    size = packed.lengths
    valid = torch.arange(packed.ids.shape[1])[None] < size[:, None]
    targets = packed.targets.masked_fill(~valid, IGNORED)
    place = Place((None,) * stack.base.blocks, torch.zeros_like(size), torch.zeros_like(size))
    read = read_stretch(
        stack.base, packed.ids, size, *place, stack.written(state, every=True), targets=targets,
        errors=bool(stack.active), second=stack.config.second_order,
    )  # fmt: skip
    assert read.nats is not None
    if stack.active:
        state = write_errors(state, read, size, stack.form, stack.config, stack.slots)
    scored = (targets != IGNORED).to(read.nats.device)
    return Observation(nats=packed.back(read.nats), scored=packed.back(scored), state=state)


def read_text(stack: Stack, state: StackedState, packed: Packed) -> tuple[Tensor, StackedState]:
    """Logits of every token; levels of the loss hold still. An open chunk ends here."""
    state = settled(stack, state)
    place, at, found = Place(_caches(state), state.held, state.position), 0 * packed.lengths, []
    width = packed.ids.shape[1]
    order = torch.zeros(len(at), width, dtype=torch.long)
    first = 0
    while True:
        left = packed.lengths - at
        sizes = left.minimum(_reach(stack, place, left))
        if not bool(sizes.any()):
            break
        ids = packed.ids if bool((at == 0).all() & (sizes == left).all()) else (
            take(packed.ids, at, sizes)
        )  # fmt: skip
        read = read_stretch(stack.base, ids, sizes, *place, stack.written(state))
        place = behind(place, read.caches, sizes)
        place = trimmed(stack, place, place.position % stack.config.chunk == 0, learning=False)
        found.append(read.logits)
        for row, (begin, size) in enumerate(zip(at.tolist(), sizes.tolist(), strict=True)):
            order[row, begin : begin + size] = torch.arange(first, first + size)
        first += ids.shape[1]
        at = at + sizes
    logits = found[0]
    if len(found) > 1:
        every = torch.cat(found, dim=1)
        logits = every.gather(1, order.to(every.device)[..., None].expand(-1, -1, every.shape[-1]))
    return packed.back(logits), _at(state, place, None)


def opened(stack: Stack, state: StackedState) -> StackedState:
    """The state as the next ``observe`` takes it: with an open chunk, if an empty one."""
    if state.open is not None:
        return state
    weight = next(stack.base.model.parameters())
    none = torch.zeros(state.batch, dtype=torch.long)
    empty = torch.zeros(state.batch, stack.config.chunk, dtype=torch.long)
    vocab = stack.base.outputs
    chunk = OpenChunk(ids=empty, targets=empty, count=none, waiting=none,
                      logits=weight.new_zeros(state.batch, vocab))  # fmt: skip
    start = trimmed(stack, Place(_caches(state), state.held, state.position), none == 0)
    return _at(state, start, chunk)


def settled(stack: Stack, state: StackedState) -> StackedState:
    """The state with its open chunk ended here: what was observed counts, without a write."""
    seen = state.open
    if seen is None:
        return state
    known = seen.count - seen.waiting
    if stack.active and bool(known.any()):
        none = torch.zeros_like(known)
        ids, targets = (take(tokens, none, known) for tokens in (seen.ids, seen.targets))
        start = _start(state, seen.count)
        read = _errors(stack, state, ids, targets, known, start)
        state = write_errors(state, read, known, stack.form, stack.config, stack.slots)
    return dataclasses.replace(state, open=None)


def new_text(stack: Stack, state: StackedState) -> StackedState:
    """What the levels hold, and nothing of attention: the beginning of another text."""
    state = settled(stack, state)
    none = torch.zeros_like(state.held)
    return _at(state, Place((None,) * len(state.blocks), none, none), None)


def behind(place: Place, caches: Caches, sizes: Tensor) -> Place:
    """Where a row stands after ``sizes`` more tokens, whose padding is dropped."""
    end, held = int(place.held.max()) + sizes, place.held + sizes
    return Place(stretch(caches, end, held), held, place.position + sizes)


def trimmed(stack: Stack, place: Place, rows: Tensor, *, learning: bool = True) -> Place:
    """What a chunk that starts now finds: the last ``window`` tokens.

    Where positions are learned there is no way to move them, so that the text starts anew when the
    next chunk may not have places enough.

    Args:
        stack: the model.
        place: before.
        rows: ``(B,)`` bool, those whose chunk starts.
        learning: whether a whole chunk must fit, which is read at once; else the next token.
    """
    caches, held, position = place
    length = held
    if stack.config.window is not None:
        length = torch.where(rows, held.clamp(max=stack.config.window), length)
    if stack.base.places is not None:
        full = position + (stack.config.chunk if learning else 1) > stack.base.places
        full = full & rows if learning else full
        length, position = length.masked_fill(full, 0), position.masked_fill(full, 0)
    if bool((length == held).all()):
        return Place(caches, held, position)
    end = torch.full_like(held, int(held.max()))
    return Place(stretch(caches, end, length), length, position)


def _reach(stack: Stack, place: Place, left: Tensor) -> Tensor:
    """``(B,)`` tokens that a call without a loss may read at once."""
    reach = left
    if stack.base.places is not None:
        reach = reach.minimum(stack.base.places - place.position)
    window = stack.config.window
    if window is not None and bool((place.held + left > window).any()):
        reach = reach.minimum(stack.config.chunk - place.position % stack.config.chunk)
    return reach


def _read(
    stack: Stack, state: StackedState, text: Joined, at: Tensor, sizes: Tensor, place: Place, *,
    errors: bool = False,
) -> Read:  # fmt: skip
    ids, targets = (take(tokens, at, sizes) for tokens in (text.ids, text.targets))
    if errors:
        read = _errors(stack, state, ids, targets, sizes, place)
    else:
        targets = _only(targets, sizes.minimum((text.known - at).clamp(min=0)))
        read = read_stretch(stack.base, ids, sizes, *place, stack.written(state), targets=targets)
    assert read.nats is not None
    text.add(read.nats, at, sizes)
    return read


def _errors(
    stack: Stack, state: StackedState, ids: Tensor, targets: Tensor, size: Tensor, place: Place
) -> Read:
    return read_stretch(
        stack.base, ids, size, *place, stack.written(state, every=True),
        targets=_only(targets, size), errors=True, second=stack.config.second_order,
    )  # fmt: skip


def _new(stack: Stack, state: StackedState, text: Joined) -> tuple[Tensor, Place]:
    """Read the new tokens behind what was read before; the token that waits is scored."""
    seen, new = state.open, text.packed.lengths
    assert seen is not None
    if text.packed.targets is None and bool(seen.waiting.any()):
        start = (text.open - 1).clamp(min=0)
        target = text.targets.gather(1, start[:, None])[:, 0].to(seen.logits.device)
        wide = seen.logits if seen.logits.dtype == torch.float64 else seen.logits.float()
        nats = F.cross_entropy(wide, target, reduction="none")[:, None]
        text.add(nats, start, seen.waiting)
    place = Place(_caches(state), state.held, state.position)
    if not bool(new.any()):
        return seen.logits, place
    read = _read(stack, state, text, text.open, new, place)
    return _last(read, new, seen.logits, new > 0), behind(place, read.caches, new)


def _rest(
    stack: Stack, state: StackedState, text: Joined, at: Tensor, place: Place
) -> tuple[Tensor, Place]:
    """Read the open rest from where its chunk started."""
    rest, seen = text.end - at, state.open
    assert seen is not None
    if not bool(rest.any()):
        return seen.logits, place
    read = _read(stack, state, text, at, rest, place)
    return (
        _last(read, rest, seen.logits, (text.packed.lengths > 0) & (rest > 0)),
        behind(place, read.caches, rest),
    )


def _last(read: Read, size: Tensor, old: Tensor, fresh: Tensor) -> Tensor:
    """``(B, V)`` logits at every row's last token; the old ones without a new token."""
    index = (size - 1).clamp(min=0).to(read.logits.device)
    last = read.logits.gather(1, index[:, None, None].expand(-1, 1, read.logits.shape[-1]))[:, 0]
    return torch.where(fresh.to(last.device)[:, None], last, old.to(last))


def _only(targets: Tensor, known: Tensor) -> Tensor:
    """Targets that there are; ``IGNORED`` for the others."""
    return targets.masked_fill(torch.arange(targets.shape[1])[None] >= known[:, None], IGNORED)


def _start(state: StackedState, count: Tensor) -> Place:
    """Where the open chunk started: without its tokens."""
    end, held = int(state.held.max()) - count, state.held - count
    return Place(stretch(_caches(state), end, held), held, state.position - count)


def _caches(state: StackedState) -> Caches:
    return tuple(block.cache for block in state.blocks)


def _at(state: StackedState, place: Place, chunk: OpenChunk | None) -> StackedState:
    blocks: tuple[BlockState, ...] = tuple(
        dataclasses.replace(block, cache=cache)
        for block, cache in zip(state.blocks, place.caches, strict=True)
    )
    return dataclasses.replace(
        state, blocks=blocks, held=place.held, position=place.position, open=chunk
    )
