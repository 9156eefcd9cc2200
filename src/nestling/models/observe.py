"""Reading with the next-token loss at hand: what learns from it is written (NL 3.3, 7.1).

    L_t = -ln p(x_{t+1}),       e_t = d/dh_t  sum over the chunk of L

A chunk ends wherever a level of the source ``Backprop`` ends its period, and after ``chunk`` tokens
at the latest. It is read, its loss is backpropagated to every such level of the model, and these
are written (``continuum/``, docs/decisions/0008). Tokens of a chunk that is not whole yet are kept
and read again when it is, so a text may be cut anywhere.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nestling.continuum import OnBoundary, Watch
from nestling.memory import detach
from nestling.models.joined import Joined, Kept
from nestling.models.language_model import LanguageModel
from nestling.models.packing import Packed, pack, take
from nestling.models.state import Chunk, ModelState, Observed
from nestling.models.stretch import (
    Blocks,
    Read,
    chunk_size,
    read_stretch,
    token_losses,
    until_end,
    write_errors,
)
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a call of :func:`observe` found.

    Attributes:
        nats: ``(B, T)`` ``-ln p`` of each token of the call, given all before it (or of its
            target, where targets are given); 0 where it was not predicted.
        scored: ``(B, T)`` bool, where it was: not at padding, nor at the first token of a text.
        state: after the call.
    """

    nats: Tensor
    scored: Tensor
    state: ModelState

    @property
    def loss(self) -> Tensor:
        """Mean over the tokens that were predicted; 0 if none was."""
        return self.nats.sum() / self.scored.sum().clamp(min=1)


def observe(
    model: LanguageModel,
    ids: Tensor,
    state: ModelState | None = None,
    *,
    mask: Tensor | None = None,
    targets: Tensor | None = None,
    on_boundary: OnBoundary | None = None,
) -> Observation:
    """Read a text, score every token and write every memory, those of the loss too.

    Args:
        model: of any preset.
        ids: ``(B, T)`` whole numbers.
        state: from the last call; ``None`` starts a text.
        mask: ``(B, T)`` bool, False at padding.
        targets: ``(B, T)``, the token after each. By default the next token of the text itself,
            which for the last one comes with the next call.
        on_boundary: sees the end of every period; those of local levels in a chunk that is read
            again are told again, with the same ``tokens``.

    Raises:
        ValueError: naming the argument; or within ``torch.inference_mode``, where nothing can
            learn from a gradient.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1)
    >>> seen = observe(model, torch.tensor([[1, 2, 3]]))
    >>> seen.scored.tolist()
    [[False, True, True]]
    """
    model.check(ids, state, mask, targets)
    if torch.is_inference_mode_enabled():
        raise ValueError("observe: expected torch.no_grad() or gradients, got inference_mode")
    state = state or model.initial_state(ids.shape[0])
    seen = observing(model, state).observed
    assert seen is not None
    if targets is not None and bool(seen.waiting.any()):
        raise ValueError("targets: expected none, as the last call's last token waits for its own")
    _check_open(model, seen)
    outer = torch.is_grad_enabled()
    # Which token goes where is decided on the host, like everything that clocks decide.
    mask, targets = (None if part is None else part.cpu() for part in (mask, targets))
    packed = pack(ids.cpu(), mask, targets)
    call = _Call(model, seen, packed, on_boundary, outer)
    # The inner gradient is there whether or not an outer one is wanted.
    with torch.enable_grad() if seen.chunk is not None else nullcontext():
        after = call.chunks(state) if seen.chunk is not None else call.plainly(state)
    nats, scored = call.text.collected()
    return Observation(
        nats=nats if outer else nats.detach(),
        scored=scored,
        state=after if outer else detach(after),
    )


def losses(
    model: LanguageModel, ids: Tensor, targets: Tensor, state: ModelState | None = None
) -> tuple[Tensor, ModelState]:
    """``-ln p`` of every target, ``(B, T)``, and the new state, from whatever way the model reads.

    >>> from nestling.models import build
    >>> model = build("transformer", width=16, heads=2, layers=1)
    >>> nats, _ = losses(model, torch.tensor([[1, 2, 3]]), torch.tensor([[2, 3, 4]]))
    >>> nats.shape
    torch.Size([1, 3])
    """
    if model.config.learns_from_loss:
        seen = observe(model, ids, state, targets=targets)
        return seen.nats, seen.state
    logits, after = model(ids, state)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.mT, targets, reduction="none"), after


def read_on(
    model: LanguageModel, ids: Tensor, state: ModelState | None = None
) -> tuple[Tensor, ModelState]:
    """Logits after the last token, ``(B, V)``, and the state with every memory written.

    >>> from nestling.models import build
    >>> logits, _ = read_on(build("transformer", width=16, heads=2, layers=1), torch.tensor([[1]]))
    >>> logits.shape
    torch.Size([1, 256])
    """
    if model.config.learns_from_loss:
        after = observe(model, ids, state).state
        assert after.observed is not None
        return model.logits(after.observed.hidden[:, None])[:, 0], after
    logits, after = model(ids, state)
    return logits[:, -1], after


def observing(model: LanguageModel, state: ModelState) -> ModelState:
    """The state as the next ``observe`` takes it: with an open chunk, if an empty one."""
    if state.observed is not None:
        return state
    weight, size = model.embedding.weight, chunk_size(model)
    batch = state.blocks[0].mixer.memory.batch
    none = torch.zeros(batch, dtype=torch.long)
    chunk = None
    if size is not None:
        empty = torch.zeros(batch, size, dtype=torch.long)
        chunk = Chunk(ids=empty, targets=empty, count=none, blocks=state.blocks)
    hidden = weight.new_zeros(batch, weight.shape[1])
    return dataclasses.replace(state, observed=Observed(hidden=hidden, waiting=none, chunk=chunk))


def settled(model: LanguageModel, state: ModelState) -> ModelState:
    """The state with its open chunk ended here: what was observed counts, without a write.

    No period can end with it, or the chunk would have been whole.
    """
    seen = state.observed
    if seen is None or seen.chunk is None:
        return ModelState(blocks=state.blocks)
    known = seen.chunk.count - seen.waiting
    if not bool(known.any()):
        return ModelState(blocks=state.blocks)
    outer = torch.is_grad_enabled()
    with torch.enable_grad():
        none = torch.zeros_like(known)
        ids, targets = (take(t, none, known) for t in (seen.chunk.ids, seen.chunk.targets))
        read = read_stretch(model, ids, targets, known, seen.chunk.blocks, Watch(tape={}), outer)
        blocks = write_errors(model, read, state.blocks, None)
    after = ModelState(blocks=blocks)
    return after if outer else detach(after)


def _check_open(model: LanguageModel, seen: Observed) -> None:
    """A state may come from a file: what indexes a table is looked at first."""
    chunk, known = seen.chunk, model.config.vocab_size
    fits = bool(((seen.waiting == 0) | (seen.waiting == 1)).all())
    if chunk is not None:
        tokens = torch.cat([chunk.ids, chunk.targets], dim=1)
        fits = fits and bool(((tokens >= 0) & (tokens < known)).all())
        count = chunk.count
        fits = fits and bool(((count >= seen.waiting) & (count <= chunk.ids.shape[1])).all())
    if not fits:
        raise ValueError(f"state: its open chunk is not one of tokens 0 to {known - 1}")


class _Call:
    """The parts of :func:`observe` that share a text."""

    def __init__(
        self, model: LanguageModel, seen: Observed, packed: Packed,
        on_boundary: OnBoundary | None, outer: bool,
    ) -> None:  # fmt: skip
        self.model, self.seen, self.packed = model, seen, packed
        self.on_boundary, self.outer = on_boundary, outer
        kept = seen.chunk and Kept(seen.chunk.ids, seen.chunk.targets, seen.chunk.count)
        self.text = Joined(packed, seen.waiting, kept)

    def plainly(self, state: ModelState) -> ModelState:
        """Without a level that learns from the loss: one pass over the new tokens."""
        hidden, blocks = self._new(state)
        observed = Observed(hidden=hidden, waiting=self.text.waiting)
        return ModelState(blocks=blocks, observed=observed)

    def chunks(self, state: ModelState) -> ModelState:
        """Every chunk that is whole now is read and written, then the open rest is read."""
        seen, model, text = self.seen, self.model, self.text
        assert seen.chunk is not None
        blocks, at = seen.chunk.blocks, torch.zeros_like(text.open)
        while True:
            sizes = until_end(model, blocks)
            sizes = torch.where(at + sizes <= text.known, sizes, 0)
            if not bool(sizes.any()):
                break
            read = self._read(at, sizes, blocks, Watch(on_boundary=self.on_boundary, tape={}))
            blocks = write_errors(model, read, read.blocks, self.on_boundary)
            at = at + sizes
        if bool(at.any()):
            hidden, after = self._rest(at, blocks)
        else:
            hidden, after = self._new(state)
        rest, size = text.end - at, seen.chunk.ids.shape[1]
        ids, targets = (take(part, at, rest, size) for part in (text.ids, text.targets))
        chunk = Chunk(ids=ids, targets=targets, count=rest, blocks=blocks)
        observed = Observed(hidden=hidden, waiting=text.waiting, chunk=chunk)
        return ModelState(blocks=after, observed=observed)

    def _read(self, start: Tensor, size: Tensor, blocks: Blocks, watch: Watch) -> Read:
        ids, targets = (take(tokens, start, size) for tokens in (self.text.ids, self.text.targets))
        read = read_stretch(self.model, ids, targets, size, blocks, watch, self.outer)
        self.text.add(read.nats, start, size)
        return read

    def _new(self, state: ModelState) -> tuple[Tensor, Blocks]:
        """Read the new tokens behind what was read before; the token that waits is scored."""
        seen, text = self.seen, self.text
        if self.packed.targets is None and bool(seen.waiting.any()):
            start = (text.open - 1).clamp(min=0)
            target = text.targets.gather(1, start[:, None])
            nats = token_losses(self.model, seen.hidden[:, None], target)
            text.add(nats, start, seen.waiting)
        new, watch = self.packed.lengths, Watch(on_boundary=self.on_boundary)
        read = self._read(text.open, new, state.blocks, watch)
        return self._last(read, new), read.blocks

    def _rest(self, start: Tensor, blocks: Blocks) -> tuple[Tensor, Blocks]:
        """Read the open rest from where its chunk started."""
        rest = self.text.end - start
        if not bool(rest.any()):
            return self.seen.hidden, blocks
        read = self._read(start, rest, blocks, Watch(on_boundary=self.on_boundary))
        return self._last(read, rest), read.blocks

    def _last(self, read: Read, size: Tensor) -> Tensor:
        """``(B, D)`` the output at every row's last token; the old one without a new token."""
        index = (size - 1).clamp(min=0).to(read.hidden.device)
        last = read.hidden.gather(1, index[:, None, None].expand(-1, 1, read.hidden.shape[-1]))
        fresh = (self.packed.lengths > 0).to(last.device)[:, None]
        return torch.where(fresh, last[:, 0], self.seen.hidden.to(last.dtype))
