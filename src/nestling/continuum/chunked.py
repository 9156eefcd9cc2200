"""The Continuum Memory System as it runs: level by level, one batch of products for every period.

Level l + 1 needs the outputs of level l and nothing else of it, a block's local error nothing but
the block's own input, and clocks do not depend on numbers: so each level runs over all tokens of
the call before the next one does. ``recurrent.py`` says the same token by token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from nestling.continuum.fast import UNWATCHED, Fast, Watch, accumulate, close, gather
from nestling.continuum.gated import Trace, read, surprises
from nestling.continuum.rule import Surprise
from nestling.continuum.schedule import Course, Segment, courses
from nestling.continuum.source import Backprop, Given, Local
from nestling.continuum.state import ContinuumState, LevelState
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor

Plain = Callable[[Tensor], Tensor]
"""A level without an inner state: the MLP's output without the residual, token by token."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Levels, fastest first, and how they are put together.

    Attributes:
        levels: in context, or plain functions.
        nested: whether slower levels learn the initial states of faster ones.
        mix: ``(k,)`` weights of independent levels; ``None`` for a chain.
    """

    levels: tuple[Fast | Plain, ...]
    nested: bool = False
    mix: Tensor | None = None

    def put_together(self, x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The output from ``run(i, x)``, the output of the i-th MLP for the input x."""
        if self.mix is None:
            for index in range(len(self.levels)):
                x = x + run(index, x)
            return x
        y = x
        for index, weight in enumerate(self.mix.to(x.dtype)):
            y = y + weight * run(index, x)
        return y

    @property
    def fast(self) -> list[tuple[int, Fast]]:
        """Place and value of the levels in context."""
        return [(i, level) for i, level in enumerate(self.levels) if isinstance(level, Fast)]

    def slower_than(self, index: int) -> Fast | None:
        """The level that learns the initial state of the one at ``index``."""
        behind = [level for i, level in self.fast if i > index]
        return behind[0] if self.nested and behind else None


def chunked(
    chain: Chain,
    x: Float[Tensor, "B T D"],
    state: ContinuumState,
    lengths: Tensor | None = None,
    *,
    writes: str = "on",
    watch: Watch = UNWATCHED,
) -> tuple[Float[Tensor, "B T D"], ContinuumState]:
    """Read T tokens with every level and write those whose errors are local.

    Args:
        chain: the levels.
        x: residual stream.
        state: of the levels in context.
        lengths: ``(B,)`` real tokens in each row, the rest is padding on the right.
        writes: ``"off"`` reads with the weights as they are and returns the state as it was.
        watch: who wants to see boundaries and traces.
    """
    B, T = x.shape[:2]
    tokens = torch.full((B,), T) if lengths is None else lengths.cpu()
    ways = way_of(chain, state, tokens, T) if writes == "on" else {}
    after: dict[str, LevelState] = {}

    def run(index: int, x: Tensor) -> Tensor:
        level = chain.levels[index]
        if not isinstance(level, Fast):
            return level(x)
        old = state.levels[str(index)]
        if index not in ways:
            after[str(index)] = dataclasses.replace(old, seen=old.seen + tokens)
            return look(level, old, x, watch)
        slower = chain.slower_than(index)
        y, after[str(index)] = _run(level, slower, old, x, ways[index], watch)
        return y

    y = chain.put_together(x, run)
    return y, ContinuumState(levels=after) if writes == "on" else state


def way_of(
    chain: Chain, state: ContinuumState, tokens: Tensor, length: int, *, backprop: bool = False
) -> dict[int, Course]:
    """The course of every level in context, by its place; of those alone that ``backprop`` asks."""
    fast = [(i, level) for i, level in chain.fast if isinstance(level.source, Backprop) == backprop]
    found = courses(
        [level.period for _, level in fast],
        [state.levels[str(index)].clock for index, _ in fast],
        tokens, length, nested=chain.nested,
    )  # fmt: skip
    return {index: course for (index, _), course in zip(fast, found, strict=True)}


def look(fast: Fast, state: LevelState, x: Tensor, watch: Watch = UNWATCHED) -> Tensor:
    """Read all tokens with the weights held; leave the trace on the tape if there is one."""
    trace = read(fast.norm(x), common(state.weights, fast.learned))
    if watch.tape is not None and isinstance(fast.source, Backprop):
        if not trace.m.requires_grad:  # nothing is trained, but its error is asked for
            trace.m.requires_grad_()
        watch.tape[watch.prefix + fast.name] = trace
    return trace.m


def common(weights: Weights, learned: Weights) -> dict[str, Tensor]:
    """Weights that all rows share as one ``(in, out)`` matrix: one product for all rows.

    Rows that were never written are views of the learned weights; those themselves are returned,
    so that their gradient is one product, too.
    """
    found = {}
    for name, W in weights.items():
        own = learned.get(name)
        shared = W.stride(0) == 0 or W.shape[0] == 1
        same = own is not None and own.data_ptr() == W.data_ptr() and own.dtype == W.dtype
        if shared and same and own is not None and own.requires_grad == W.requires_grad:
            found[name] = own
        elif shared and not W.requires_grad:
            found[name] = W[0]
        else:
            found[name] = W
    return found


def _run(
    fast: Fast, slower: Fast | None, state: LevelState, x: Tensor, course: Course, watch: Watch
) -> tuple[Tensor, LevelState]:
    """One level over all tokens: read a period, gather its error, move, and on."""
    k = fast.norm(x)
    still = fast.eta is None and (slower is None or slower.eta is None)
    if fast.period is None or still:
        y = read(k, common(state.weights, fast.learned)).m
        seen = state.seen + sum(segment.tokens for segment in course.segments)
        return y, dataclasses.replace(state, clock=course.clock, seen=seen)
    sources = _sources(fast, k)
    sizes = [segment.columns for segment in course.segments]
    parts = {name: torch.split(course.spread(value), sizes, dim=1)
             for name, value in sources.items()}  # fmt: skip
    valid = None if course.valid is None else torch.split(course.valid.to(x.device), sizes, dim=1)
    outputs = []
    for i, segment in enumerate(course.segments):
        here = {name: pieces[i] for name, pieces in parts.items()}
        weights = common(state.weights, fast.learned)
        trace = read(here["k"], weights)
        outputs.append(trace.m)
        found = _errors(fast, here, trace, weights)
        state = absorb(fast, slower, state, found, segment, None if valid is None else valid[i])
        state = close(fast, slower, state, segment, watch)
    y = torch.cat(outputs, dim=1) if outputs else torch.zeros_like(x)
    return course.collect(y), state


def _sources(fast: Fast, k: Tensor) -> dict[str, Tensor]:
    """What no write touches, for all tokens at once."""
    found = {"k": k}
    if isinstance(fast.source, Given):
        found["error"] = fast.source.errors.to(k.dtype)
        return found
    assert fast.target is not None
    found["v"] = fast.target(k)
    if fast.key is not None:
        found["q"] = fast.key(k)
    return found


def _errors(
    fast: Fast, here: Mapping[str, Tensor], trace: Trace, weights: Weights
) -> dict[str, Surprise]:
    every = len(fast.written) > 1
    if isinstance(fast.source, Given):
        return surprises(trace, here["error"], weights, every=every)
    assert isinstance(fast.source, Local)
    if "q" in here:
        trace = read(here["q"], weights)
    error = fast.source.objective.gradient(trace.m, here["v"])
    return surprises(trace, error, weights, every=every)


def absorb(
    fast: Fast, slower: Fast | None, state: LevelState, found: Mapping[str, Surprise],
    segment: Segment, valid: Tensor | None,
) -> LevelState:  # fmt: skip
    """Add a segment's errors to those of the open period, and to those of the slower level's."""
    own = None
    if fast.eta is not None:
        own = gather(fast.rule, found, fast.eta, valid)
        gathered = accumulate(state.gathered, own, segment.fresh)
        state = dataclasses.replace(state, gathered=gathered)
    if state.initial is None or slower is None or slower.eta is None:
        return state
    if own is None or not (fast.rule.plain and slower.rule.plain):
        own = gather(slower.rule, found, slower.eta, valid)
    gathered = accumulate(state.initial.gathered, own, segment.initial_fresh)
    initial = dataclasses.replace(state.initial, gathered=gathered)
    return dataclasses.replace(state, initial=initial)
