"""A stretch of text under the next-token loss: read it, find every level's error, write it.

e_t = d/dh_t  sum over the stretch of -ln p(x_{t+1})                      NL 3.3, 7.1
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nestling.continuum import (
    Backprop,
    ContinuumState,
    Fast,
    InContext,
    LevelState,
    OnBoundary,
    Watch,
)
from nestling.continuum.chunked import absorb, common, way_of
from nestling.continuum.config import backprop_chunk
from nestling.continuum.fast import close
from nestling.continuum.gated import Trace, surprises
from nestling.continuum.rule import Surprise
from nestling.continuum.schedule import Course
from nestling.layers.block import BlockState
from nestling.models.language_model import LanguageModel
from nestling.shapes import Float, Tensor

Blocks = tuple[BlockState, ...]


def chunk_size(model: LanguageModel) -> int | None:
    """Most tokens in a chunk; ``None`` if no level of the model learns from its loss."""
    config = model.config
    return backprop_chunk(config.continuum.chain) if config.learns_from_loss else None


class Read(NamedTuple):
    """A stretch of text as it was read.

    Attributes:
        hidden: ``(B, T, D)`` output of the last block.
        nats: ``(B, T)`` losses, 0 at padding.
        blocks: state afterwards.
        tokens: ``(B,)`` tokens of each row.
        tape: what levels of the loss left behind, and their errors; empty unless asked for.
    """

    hidden: Tensor
    nats: Tensor
    blocks: Blocks
    tokens: Tensor
    tape: dict[str, tuple[Trace, Tensor]]


def read_stretch(
    model: LanguageModel, ids: Tensor, targets: Tensor, size: Tensor, blocks: Blocks,
    watch: Watch, outer: bool,
) -> Read:  # fmt: skip
    """Read from a state, and find the error of every level that learns from the loss."""
    width = ids.shape[1]
    lengths = None if bool((size == width).all()) else size
    second = watch.tape is not None and model.config.second_order
    # Of torch's attention kernels only this one can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH) if second else nullcontext():
        device = model.embedding.weight.device
        hidden, after = model.read(ids.to(device), blocks, lengths, watch=watch)
        nats = token_losses(model, hidden, targets)
        if lengths is not None:
            padded = torch.arange(width)[None] >= lengths[:, None]
            nats = nats.masked_fill(padded.to(nats.device), 0.0)
        tape = watch.tape or {}
        errors: tuple[Tensor, ...] = ()
        if tape:
            errors = torch.autograd.grad(
                nats.sum(), [trace.m for trace in tape.values()], create_graph=second,
                retain_graph=second or outer,
            )  # fmt: skip
    found = {name: (tape[name], error) for name, error in zip(tape, errors, strict=True)}
    return Read(hidden, nats, after, size, found)


def write_errors(
    model: LanguageModel, read: Read, blocks: Blocks, on_boundary: OnBoundary | None
) -> Blocks:
    """The state with the errors of a stretch in it, and moved where a period ends behind it."""
    columns, written = read.hidden.shape[1], []
    for index, (block, state) in enumerate(zip(model.block_list(), blocks, strict=True)):
        watch = Watch(on_boundary=on_boundary, prefix=f"blocks.{index}.continuum.")
        chain, old = block.continuum.chain(), state.continuum
        assert old is not None
        levels = dict(old.levels)
        for i, course in way_of(chain, old, read.tokens, columns, backprop=True).items():
            fast, slower = chain.levels[i], chain.slower_than(i)
            assert isinstance(fast, Fast)
            trace, error = read.tape[watch.prefix + fast.name]
            levels[str(i)] = _level(fast, slower, levels[str(i)], (trace, error), course, watch)
        written.append(dataclasses.replace(state, continuum=ContinuumState(levels=levels)))
    return tuple(written)


def _level(
    fast: Fast, slower: Fast | None, state: LevelState, found: tuple[Trace, Tensor],
    course: Course, watch: Watch,
) -> LevelState:  # fmt: skip
    assert isinstance(fast.source, Backprop)
    assert len(course.segments) <= 1, "a chunk ends where a period does"
    for segment in course.segments:
        size = segment.columns
        trace, error = Trace(*(part[:, :size] for part in found[0])), found[1][:, :size]
        made = surprises(trace, error, common(state.weights, fast.learned), every=True)
        if fast.source.order == 1:
            made = {name: Surprise(*(part.detach() for part in one)) for name, one in made.items()}
        valid = None if course.valid is None else course.valid.to(error.device)
        # Reading has already counted these tokens.
        state = dataclasses.replace(state, seen=state.seen - segment.tokens)
        state = absorb(fast, slower, state, made, segment, valid)
        state = close(fast, slower, state, segment, watch)
    return state


def token_losses(
    model: LanguageModel, hidden: Float[Tensor, "B T D"], targets: Tensor
) -> Float[Tensor, "B T"]:
    """``-ln p`` of every target, in float32 at least."""
    logits = model.logits(hidden)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(logits.mT, targets.to(logits.device), reduction="none")


def until_end(model: LanguageModel, blocks: Blocks) -> Tensor:
    """``(B,)`` tokens from a chunk's start to its end, as the clocks stand."""
    chain = model.config.continuum.chain
    sources = [level.regime.source for level in chain if isinstance(level.regime, InContext)]
    limit = min(source.chunk for source in sources if isinstance(source, Backprop))
    sizes = torch.full((blocks[0].mixer.memory.batch,), limit)
    for block in blocks:
        assert block.continuum is not None
        for index, level in enumerate(chain):
            if level.period is not None and level.source_of(Backprop):
                sizes = sizes.minimum(level.period - block.continuum.levels[str(index)].clock)
    return sizes
