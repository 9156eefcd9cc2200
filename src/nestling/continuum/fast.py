"""A level in context as the engines take it, and what happens at a period's end.

theta <- theta_0 + kept (theta - theta_0) - eta F(G / C)
    Phi <- theta_0 + kept' (Phi - theta_0) - eta' F'(G' / C'),   theta <- Phi      (nested)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from nestling.continuum.gated import Trace
from nestling.continuum.rule import ErrorRule, Moments, Surprise
from nestling.continuum.schedule import Ends, Flag, Segment
from nestling.continuum.source import Backprop, Given, Local
from nestling.continuum.state import MATRICES, InitialState, LevelState, fresh, zeros
from nestling.levels import Level
from nestling.memory.state import Weights
from nestling.shapes import Tensor


@dataclass(frozen=True, kw_only=True)
class Fast:
    """One level in context.

    Attributes:
        name: path in the chain, ``levels.1``.
        period: C, in tokens; ``None`` is never.
        rule: error part.
        source: where errors come from.
        eta: step size, one number; ``None`` where it is 0 for good and nothing is written.
        kept: share of ``theta - theta_0`` that a write keeps.
        norm: the block's input to ``k``, token by token.
        target: ``k`` to ``v``; needed by ``Local``.
        key: ``k`` to the key, or ``None`` where they are the same.
        learned: the learned weights ``theta_0``, ``(in, out)``, that the state started from.
    """

    name: str
    period: int | None
    rule: ErrorRule
    source: Local | Backprop | Given
    eta: Tensor | None
    norm: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], Tensor] | None = None
    key: Callable[[Tensor], Tensor] | None = None
    learned: Weights = field(default_factory=dict)
    kept: float = 1.0

    @property
    def written(self) -> tuple[str, ...]:
        """The matrices that are written."""
        return MATRICES if not isinstance(self.source, Local) else _matrices(self.source)


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """The end of a level's period: the event where weights move.

    Attributes:
        name: path of the level in the model, ``blocks.0.continuum.levels.1``.
        level: its period.
        kind: ``"write"``, or ``"restart"`` from the initial state that a slower level learns.
        rows: ``(B,)`` bool, the rows whose period ends here.
        tokens: ``(B,)`` tokens that each row has read, these included.
        before: weights held in the period, ``(B, in, out)``.
        after: weights that the rule, or the restart, asks for; equal to ``before`` elsewhere.
    """

    name: str
    level: Level
    kind: Literal["write", "restart"]
    rows: Tensor
    tokens: Tensor
    before: Weights
    after: Weights


OnBoundary = Callable[[Boundary], Weights | None]
"""Sees every period's end; what it returns is taken instead of ``after``."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a caller wants to see of a call.

    Attributes:
        on_boundary: called at every period's end.
        tape: where ``Backprop`` levels leave their traces by name; ``None``: nowhere.
        prefix: path of the chain in the model, before the names of its levels.
    """

    on_boundary: OnBoundary | None = None
    tape: dict[str, Trace] | None = None
    prefix: str = ""


UNWATCHED = Watch()


def gather(
    rule: ErrorRule, surprises: Mapping[str, Surprise], eta: Tensor, valid: Tensor | None
) -> dict[str, Tensor]:
    """``sum_t p_t^T f_t`` of every matrix and row, ``(B, in, out)``."""
    found = {}
    for name, surprise in surprises.items():
        f = rule.error(surprise, eta)
        if valid is not None:
            f = f.masked_fill(~valid[..., None], 0.0)
        found[name] = surprise.key.mT @ f
    return found


def accumulate(old: Weights, new: Weights, fresh: bool) -> Weights:
    """Errors so far and those of a segment, in the precision of the state."""
    new = {name: W.to(old[name].dtype) for name, W in new.items()}
    return new if fresh else {name: old[name] + W for name, W in new.items()}


def close(
    fast: Fast, slower: Fast | None, state: LevelState, segment: Segment, watch: Watch
) -> LevelState:
    """Move clocks over a segment, and do what its end asks for, in the order of :class:`Ends`.

    ``state.gathered`` already holds the segment's errors.
    """
    ends = segment.ends
    clock, seen = state.clock + segment.tokens, state.seen + segment.tokens
    state = dataclasses.replace(state, clock=clock, seen=seen)
    initial = state.initial
    if initial is not None and slower is not None:
        initial = _move_initial(initial, slower, ends, fast.learned)
        state = dataclasses.replace(state, initial=initial)
    if _any(ends.write) and fast.eta is not None and fast.period is not None:
        state = _write(fast, fast.eta, fast.period, state, ends.write, watch)
    if _any(ends.restart):
        state = _restart(fast, state, ends.restart, watch)
    reset = _rows(ends.write, clock) | _rows(ends.restart, clock)
    return dataclasses.replace(state, clock=clock.masked_fill(reset, 0))


def step(
    by: Fast, eta: Tensor, period: int, weights: Weights, gathered: Weights,
    moments: Mapping[str, Weights], age: Tensor, learned: Weights,
) -> tuple[dict[str, Tensor], dict[str, Weights]]:  # fmt: skip
    """``theta_0 + kept (theta - theta_0) - eta F(G / C)`` and the new moments.

    Args:
        by: the level whose rule and retention it is.
        eta: its step size.
        period: its C.
        weights: theta, ``(B, in, out)`` each.
        gathered: G.
        moments: of the rule; name, then matrix.
        age: ``(B,)`` how often they have moved before.
        learned: theta_0, ``(in, out)`` each.
    """
    moved: dict[str, Tensor] = {}
    after: dict[str, dict[str, Tensor]] = {moment: {} for moment in by.rule.moments}
    for name, total in gathered.items():
        own: Moments = {moment: values[name] for moment, values in moments.items()}
        direction, own = by.rule.direction(total / period, own, age)
        W = weights[name]
        if by.kept < 1:
            W = torch.lerp(learned[name].to(W.dtype), W, by.kept)
        moved[name] = W - eta.to(direction.dtype) * direction
        for moment, value in own.items():
            after[moment][name] = value
    return moved, dict(after)


def _write(
    fast: Fast, eta: Tensor, period: int, state: LevelState, rows: Flag, watch: Watch
) -> LevelState:
    moved, moments = step(fast, eta, period, state.weights, state.gathered, state.moments,
                          state.age, fast.learned)  # fmt: skip
    before = state.weights
    after = {**before, **_pick_all(rows, moved, before)}
    done = _rows(rows, state.clock).long()
    after = _event(fast, "write", state, rows, before, after, watch)
    return dataclasses.replace(
        state,
        weights=after,
        gathered=_pick_all(rows, zeros(state.gathered), state.gathered),
        moments={m: _pick_all(rows, W, state.moments[m]) for m, W in moments.items()},
        age=state.age + done,
        writes=state.writes + done,
        contributed=state.contributed + done * state.clock,
    )


def _move_initial(
    initial: InitialState, slower: Fast, ends: Ends, learned: Weights
) -> InitialState:
    rows = ends.initial_write
    if _any(rows):
        if slower.eta is not None and slower.period is not None:
            moved, moments = step(slower, slower.eta, slower.period, initial.weights,
                                  initial.gathered, initial.moments, initial.age,
                                  learned)  # fmt: skip
            initial = dataclasses.replace(
                initial,
                weights=_pick_all(rows, moved, initial.weights),
                moments={m: _pick_all(rows, W, initial.moments[m]) for m, W in moments.items()},
                age=initial.age + _rows(rows, initial.age).long(),
            )
        none = zeros(initial.gathered)
        initial = dataclasses.replace(initial, gathered=_pick_all(rows, none, initial.gathered))
    if _any(ends.initial_drop):
        none = zeros(initial.gathered)
        gathered = _pick_all(ends.initial_drop, none, initial.gathered)
        initial = dataclasses.replace(initial, gathered=gathered)
    return initial


def _restart(fast: Fast, state: LevelState, rows: Flag, watch: Watch) -> LevelState:
    assert state.initial is not None
    before = state.weights
    after = {**before, **_pick_all(rows, state.initial.weights, before)}
    after = _event(fast, "restart", state, rows, before, after, watch)
    new = fresh(state.gathered, fast.rule)
    return dataclasses.replace(
        state,
        weights=after,
        gathered=_pick_all(rows, zeros(state.gathered), state.gathered),
        moments={m: _pick_all(rows, W, state.moments[m]) for m, W in new.items()},
        age=state.age.masked_fill(_rows(rows, state.age), 0),
    )


def _event(
    fast: Fast, kind: Literal["write", "restart"], state: LevelState, rows: Flag,
    before: Weights, after: Weights, watch: Watch,
) -> Weights:  # fmt: skip
    if watch.on_boundary is None:
        return after
    event = Boundary(
        name=watch.prefix + fast.name, level=Level(fast.period), kind=kind,
        rows=_rows(rows, state.clock),
        tokens=state.seen, before=before, after=after,
    )  # fmt: skip
    instead = watch.on_boundary(event)
    if instead is None:
        return after
    for name, W in after.items():
        got = instead.get(name)
        if got is None or got.shape != W.shape:
            shape = None if got is None else tuple(got.shape)
            raise ValueError(
                f"on_boundary: expected {name} of shape {tuple(W.shape)} for {fast.name}, "
                f"got {shape}"
            )
    return {name: instead[name] for name in after}


def _matrices(source: Local) -> tuple[str, ...]:
    return MATRICES if source.matrices == "every" else MATRICES[-1:]


def _any(rows: Flag) -> bool:
    return rows if isinstance(rows, bool) else True


def _rows(rows: Flag, like: Tensor) -> Tensor:
    return torch.full(like.shape, rows) if isinstance(rows, bool) else rows


def _pick_all(rows: Flag, new: Weights, old: Weights) -> dict[str, Tensor]:
    return {name: pick(rows, W, old[name]) for name, W in new.items()}


def pick(rows: Flag, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where a row is flagged, else ``old``."""
    if isinstance(rows, bool):
        return new if rows else old
    chosen = rows.to(new.device).reshape(-1, *[1] * (new.dim() - 1))
    return torch.where(chosen, new, old)
