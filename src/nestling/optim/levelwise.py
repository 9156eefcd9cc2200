"""Parameters at several levels: each is held for its period and then moved (NL Eq. 71).

A level of period ``P`` tokens moves whenever the count of tokens passes a multiple of ``P``, by the
error ``f`` (any torch optimizer) of the mean gradient since it last moved:

    g^(l)     = mean of dL/dtheta over the steps since the last move
    theta^(l) <- theta^(l) - f(clip(g^(l)))       when floor(t / P) grows, else held

Until then the gradients stay in ``.grad`` and backpropagation adds to them: never zero them from
outside. The clocks and the gradients of an unfinished period are part of the state.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.nn import Parameter
from torch.nn.utils import get_total_norm

from nestling.levels import Level
from nestling.shapes import Tensor

Make = Callable[[Mapping[str, Parameter]], torch.optim.Optimizer]


class NonFiniteError(ValueError):
    """A loss or a gradient is NaN or infinite; nothing has been moved by it."""


@dataclass(frozen=True)
class Moved:
    """What one step did.

    Attributes:
        levels: the levels that moved, fastest first.
        norm: norm of the mean gradients of these levels together, before clipping.
        norms: norm of the mean gradient so far, for every level.
    """

    levels: tuple[Level, ...]
    norm: float
    norms: dict[Level, float]


@dataclass(frozen=True, kw_only=True)
class Move:
    """The end of a level's period across contexts: the event where its parameters move.

    Attributes:
        level: its period.
        tokens: seen in all.
        before: copies of its parameters as they were held, by name.
        after: copies of what its optimizer makes of them.
    """

    level: Level
    tokens: int
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]


OnMove = Callable[[Move], Mapping[str, Tensor] | None]
"""Sees every move; the parameters that it returns are taken instead of those in ``after``."""


@dataclass
class _Held:
    """One level: its parameters, its optimizer, and the steps since it last moved."""

    level: Level
    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer | None
    steps: int = 0

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]


class LevelwiseOptimizer:
    """One torch optimizer per level, each moved at its own period.

    Args:
        levels: pairs of a level and its parameters by name. A level of period ``None`` is held for
            ever and its gradients are dropped.
        make: builds the optimizer of one level from its named parameters, for example
            :func:`nestling.optim.adamw`.
        clip: largest norm of the gradients of the levels that move together; ``None``: no limit.

    Raises:
        ValueError: if a level or a parameter comes twice, or ``clip`` is not positive.

    >>> fast, slow = Parameter(torch.zeros(1)), Parameter(torch.zeros(1))
    >>> optimizer = LevelwiseOptimizer(
    ...     [(Level(1), {"fast": fast}), (Level(8), {"slow": slow})],
    ...     lambda named: torch.optim.SGD(named.values(), lr=1.0), clip=None)
    >>> for step in range(2):
    ...     ((fast - 1).square() + (slow - step).square()).sum().backward()
    ...     print([level.period for level in optimizer.step(tokens=4).levels])
    [1]
    [1, 8]
    >>> slow                                      # the mean of the gradients 0 and -2
    Parameter containing:
    tensor([1.], requires_grad=True)
    """

    def __init__(
        self,
        levels: Sequence[tuple[Level, Mapping[str, Parameter]]],
        make: Make,
        *,
        clip: float | None = 1.0,
    ) -> None:
        if clip is not None and not clip > 0:
            raise ValueError(f"clip: expected a positive number or None, got {clip}")
        _check_once("level", [str(level) for level, _ in levels])
        _check_once("parameter", [name for _, named in levels for name in named])
        self.clip = clip
        self.tokens = 0
        self._held = [
            _Held(level, dict(named), None if level.period is None else make(named))
            for level, named in sorted(levels, key=lambda pair: pair[0].sort_key)
            if named
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The torch optimizers, that of the fastest level first."""
        return [held.optimizer for held in self._held if held.optimizer is not None]

    @property
    def moving(self) -> list[tuple[Level, torch.optim.Optimizer]]:
        """The levels that move and their optimizers, fastest first."""
        return [(held.level, held.optimizer) for held in self._held if held.optimizer is not None]

    def scale_lr(self, factor: float) -> None:
        """Set every learning rate to ``factor`` times the one that ``make`` gave it."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @torch.no_grad()
    def step(self, *, tokens: int, on_move: OnMove | None = None) -> Moved:
        """Advance the clocks by ``tokens`` and move the levels whose period is over.

        Args:
            tokens: read since the last step.
            on_move: called for every level that moves, fastest first; it costs two copies of the
                level's parameters.

        Raises:
            ValueError: if ``tokens`` is not a positive whole number, or ``on_move`` returns what
                is no parameter of the level.
            NonFiniteError: if a gradient is NaN or infinite. Nothing has been moved then.
        """
        if not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"tokens: expected a whole number >= 1, got {tokens!r}")
        norms = {
            held.level: float(get_total_norm(held.gradients())) / (held.steps + 1)
            for held in self._held
        }
        self._check_finite(norms)
        before, self.tokens = self.tokens, self.tokens + tokens
        due = []
        for held in self._held:
            period = held.level.period
            if period is None:
                _drop(held)
                continue
            held.steps += 1
            if self.tokens // period > before // period:
                due.append(held)
        norm = math.sqrt(sum(norms[held.level] ** 2 for held in due))
        clipped = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        for held in due:
            factor = clipped / held.steps
            gradients = held.gradients()
            if factor != 1.0 and gradients:
                torch._foreach_mul_(gradients, factor)
            assert held.optimizer is not None
            held_before = None if on_move is None else _copies(held)
            held.optimizer.step()
            if on_move is not None and held_before is not None:
                move = Move(level=held.level, tokens=self.tokens, before=held_before,
                            after=_copies(held))  # fmt: skip
                _replace(held, on_move(move) or {})
            held.steps = 0
            _drop(held)
        return Moved(tuple(held.level for held in due), norm, norms)

    def state_dict(self) -> dict[str, Any]:
        """Clocks, optimizer states and unfinished gradients, by parameter name; not copied."""
        levels = []
        for held in self._held:
            names = {id(p): name for name, p in held.parameters.items()}
            groups, state = [], {}
            if held.optimizer is not None:
                groups = [
                    {key: value for key, value in group.items() if key != "params"}
                    for group in held.optimizer.param_groups
                ]
                state = {names[id(p)]: dict(kept) for p, kept in held.optimizer.state.items()}
            levels.append(
                {
                    "period": held.level.period,
                    "steps": held.steps,
                    "groups": groups,
                    "state": state,
                    "gradients": {
                        name: p.grad for name, p in held.parameters.items() if p.grad is not None
                    },
                }
            )
        return {"tokens": self.tokens, "levels": levels}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any], *, memories_only: bool = False) -> None:
        """Go on where :meth:`state_dict` was taken.

        Args:
            state: what it gave.
            memories_only: take what the optimizers remember, and neither clocks, nor unfinished
                gradients, nor learning rates: a new phase begins, with the memory of the last.

        Raises:
            ValueError: naming what differs, if the state belongs to other levels or parameters.
        """
        saved, own = state["levels"], [held.level.period for held in self._held]
        periods = [entry["period"] for entry in saved]
        if periods != own:
            raise ValueError(f"optimizer state: expected levels of periods {own}, got {periods}")
        for held, entry in zip(self._held, saved, strict=True):
            _check_entry(held, entry)
        for held, entry in zip(self._held, saved, strict=True):
            if memories_only:
                if held.optimizer is not None:
                    own = {"groups": held.optimizer.param_groups, "state": entry["state"]}
                    _load(held.optimizer, held.parameters, own)
                continue
            held.steps = int(entry["steps"])
            for name, parameter in held.parameters.items():
                gradient = entry["gradients"].get(name)
                parameter.grad = None if gradient is None else gradient.clone().to(parameter.device)
            if held.optimizer is not None:
                _load(held.optimizer, held.parameters, entry)
        if not memories_only:
            self.tokens = int(state["tokens"])

    def _check_finite(self, norms: Mapping[Level, float]) -> None:
        for held in self._held:
            if math.isfinite(norms[held.level]):
                continue
            broken = [
                name
                for name, parameter in held.parameters.items()
                if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
            ]
            where = f"of {broken[0]} ({len(broken)} in all)" if broken else "norm (it overflows)"
            raise NonFiniteError(f"the gradient {where} is not finite")


def _check_once(kind: str, names: Sequence[str]) -> None:
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise ValueError(f"levels: {kind} {name} comes twice")


def _copies(held: _Held) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in held.parameters.items()}


def _replace(held: _Held, instead: Mapping[str, Tensor]) -> None:
    for name, value in instead.items():
        parameter = held.parameters.get(name)
        if parameter is None or parameter.shape != value.shape:
            expected = "no such parameter" if parameter is None else tuple(parameter.shape)
            raise ValueError(
                f"on_move: {name!r} of the level of period {held.level.period}: got shape "
                f"{tuple(value.shape)}, expected {expected}"
            )
    for name, value in instead.items():
        held.parameters[name].copy_(value)


def _drop(held: _Held) -> None:
    for parameter in held.parameters.values():
        parameter.grad = None


def _check_entry(held: _Held, entry: Mapping[str, Any]) -> None:
    where = f"optimizer state: level of period {held.level.period}"
    unknown = sorted({*entry["state"], *entry["gradients"]} - held.parameters.keys())
    if unknown:
        raise ValueError(f"{where}: the model has no parameter {unknown[0]!r}")
    expected = len(held.optimizer.param_groups) if held.optimizer else 0
    if len(entry["groups"]) != expected:
        raise ValueError(f"{where}: expected {expected} groups, got {len(entry['groups'])}")
    for name, values in [*entry["state"].items(), ("", entry["gradients"])]:
        other = _other_shapes(held, name) if name else {}
        for key, value in values.items():
            shape = other.get(key, held.parameters[name or key].shape)
            if isinstance(value, Tensor) and value.ndim and value.shape != shape:
                raise ValueError(
                    f"{where}: {key} of {name or key} has shape {tuple(value.shape)}, "
                    f"the parameter {tuple(shape)}"
                )


def _other_shapes(held: _Held, name: str) -> Mapping[str, Any]:
    """Of what an optimizer says it holds for a parameter, which need not be of its shape."""
    says, parameter = getattr(held.optimizer, "entries", None), held.parameters[name]
    for group in held.optimizer.param_groups if callable(says) and held.optimizer else ():
        if any(one is parameter for one in group["params"]):
            return cast(Mapping[str, Any], cast(Any, says)(group, parameter.shape))
    return {}


def _load(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Parameter], entry: Mapping[str, Any]
) -> None:
    names = {id(parameter): name for name, parameter in named.items()}
    state, groups, index = {}, [], 0
    for current, saved in zip(optimizer.param_groups, entry["groups"], strict=True):
        # JSON knows no tuples: keep the type that the optimizer itself uses.
        options = {
            key: tuple(value) if isinstance(current.get(key), tuple) else value
            for key, value in saved.items()
        }
        members = []
        for parameter in current["params"]:
            values = entry["state"].get(names[id(parameter)])
            if values is not None:
                state[index] = {
                    key: value.clone() if isinstance(value, Tensor) else value
                    for key, value in values.items()
                }
            members.append(index)
            index += 1
        groups.append({**options, "params": members})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
