"""The definition of the Continuum Memory System in context: one row, one token at a time.

Reads like docs/decisions/0008 and is as slow as that. Errors come from automatic differentiation
here, and by hand in ``chunked.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from nestling.continuum.chunked import Chain
from nestling.continuum.fast import Fast, step
from nestling.continuum.gated import read
from nestling.continuum.rule import Surprise
from nestling.continuum.source import Given, Local
from nestling.continuum.state import ContinuumState, InitialState, LevelState, fresh, zeros
from nestling.memory.state import Weights, map_tensors
from nestling.shapes import Float, Tensor


def recurrent(
    chain: Chain,
    x: Float[Tensor, "B T D"],
    state: ContinuumState,
    lengths: Tensor | None = None,
) -> tuple[Float[Tensor, "B T D"], list[ContinuumState]]:
    """Outputs (zero where padded) and every row's own state; errors are local or given."""
    outputs, states = [], []
    for row in range(x.shape[0]):
        own = map_tensors(lambda tensor, row=row: tensor[row : row + 1], state)
        count = x.shape[1] if lengths is None else int(lengths[row])
        ys = [torch.zeros_like(x[row, :1])] * x.shape[1]
        for t in range(count):
            y, own = token(chain, x[row, t], own, (row, t))
            ys[t] = y[None]
        outputs.append(torch.cat(ys))
        states.append(own)
    return torch.stack(outputs), states


def token(
    chain: Chain, x: Tensor, state: ContinuumState, place: tuple[int, int]
) -> tuple[Tensor, ContinuumState]:
    """Read one token with every level, then move whatever ends its period with it."""
    levels = dict(state.levels)

    def run(index: int, x: Tensor) -> Tensor:
        level = chain.levels[index]
        if not isinstance(level, Fast):
            return level(x[None, None])[0, 0]
        m, errors = answer(level, x, levels[str(index)].weights, place)
        levels[str(index)] = gathered(
            level, chain.slower_than(index), levels[str(index)], errors
        )  # fmt: skip
        return m

    y = chain.put_together(x, run)
    return y, ContinuumState(levels=periods_end(chain, levels))


def answer(
    fast: Fast, x: Tensor, weights: Weights, place: tuple[int, int]
) -> tuple[Tensor, dict[str, Surprise]]:
    """``m_t``, and key, output and error of every matrix at the weights held."""
    with torch.enable_grad():
        k = fast.norm(x[None, None])
        k = k if k.requires_grad else k.detach().requires_grad_()
        trace = read(k, weights)
        y = trace.m[0, 0]
        if isinstance(fast.source, Given):
            loss = (y * fast.source.errors[place]).sum()
        else:
            assert isinstance(fast.source, Local)
            assert fast.target is not None
            v = fast.target(k)
            if fast.key is not None:
                trace = read(fast.key(k), weights)
            loss = fast.source.objective.loss(trace.m, v).sum()
        # With respect to outputs of matrices: the target is a constant of the inner problem.
        e_z, e_m = torch.autograd.grad(loss, [trace.z, trace.m], create_graph=True)
    found = {"gate_up": Surprise(trace.k, trace.z, e_z), "down": Surprise(trace.a, trace.m, e_m)}
    return y, {name: found[name] for name in fast.written}


def gathered(
    fast: Fast, slower: Fast | None, state: LevelState, errors: Mapping[str, Surprise]
) -> LevelState:
    """The token's ``p^T f`` added to the level's sum, and to that of the next slower level."""

    def plus(total: Weights, rule_of: Fast) -> Weights:
        if rule_of.eta is None:
            return total
        eta, rule = rule_of.eta, rule_of.rule
        return {name: total[name] + s.key.mT @ rule.error(s, eta) for name, s in errors.items()}

    state = dataclasses.replace(state, gathered=plus(state.gathered, fast),
                                clock=state.clock + 1, seen=state.seen + 1)  # fmt: skip
    if slower is None or state.initial is None:
        return state
    initial = dataclasses.replace(state.initial, gathered=plus(state.initial.gathered, slower))
    return dataclasses.replace(state, initial=initial)


def periods_end(chain: Chain, levels: Mapping[str, LevelState]) -> dict[str, LevelState]:
    """From the slowest level to the fastest: initial states move, then blocks, then restarts."""
    found, restart, slower = dict(levels), False, None
    for index, fast in reversed(chain.fast):
        state = found[str(index)]
        ends = int(state.clock) == fast.period
        if state.initial is not None and slower is not None:
            level, ended, restarted = slower
            initial = state.initial
            if ended:
                initial = _moved_initial(initial, level, fast.learned)
            if ended or restarted:
                initial = dataclasses.replace(initial, gathered=zeros(initial.gathered))
            state = dataclasses.replace(state, initial=initial)
        restarted = restart
        if ends and not restarted:
            state = _moved(fast, state)
        if restarted:
            assert state.initial is not None
            state = dataclasses.replace(
                state, weights={**state.weights, **state.initial.weights},
                gathered=zeros(state.gathered), moments=fresh(state.gathered, fast.rule),
                age=state.age * 0, clock=state.clock * 0,
            )  # fmt: skip
        found[str(index)] = state
        slower = (fast, ends, restarted)
        restart = restart or (chain.nested and ends)
    return found


def _moved(fast: Fast, state: LevelState) -> LevelState:
    if fast.eta is None or fast.period is None:
        return dataclasses.replace(state, clock=state.clock * 0)
    weights, moments = step(fast, fast.eta, fast.period, state.weights, state.gathered,
                            state.moments, state.age, fast.learned)  # fmt: skip
    return dataclasses.replace(
        state, weights={**state.weights, **weights}, moments=moments,
        gathered=zeros(state.gathered), clock=state.clock * 0, age=state.age + 1,
        writes=state.writes + 1, contributed=state.contributed + fast.period,
    )  # fmt: skip


def _moved_initial(initial: InitialState, slower: Fast, learned: Weights) -> InitialState:
    if slower.eta is None or slower.period is None:
        return initial
    weights, moments = step(slower, slower.eta, slower.period, initial.weights, initial.gathered,
                            initial.moments, initial.age, learned)  # fmt: skip
    return dataclasses.replace(initial, weights=weights, moments=moments, age=initial.age + 1)
