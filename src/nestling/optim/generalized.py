"""Any :class:`GradientRule` as a torch optimizer.

u_t = rule(g_1, ..., g_t)
W   <- (1 - lr weight_decay) W - lr u_t
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import torch
from torch.nn.utils import get_total_norm

from nestling.optim.adam import adam
from nestling.optim.checks import check_at_least
from nestling.optim.clock import Clock
from nestling.optim.gradient_rule import GradientRule
from nestling.optim.intake import MAIN, Params, groups_of
from nestling.optim.levelwise import NonFiniteError
from nestling.optim.remembered import Remembered, remembered
from nestling.optim.roles import Role
from nestling.optim.sharded import whole
from nestling.shapes import Tensor

BATCH = 1 << 24
"""Numbers of parameters of one shape that are moved together: what a step needs beside its state
is a few times as much, and no more."""


@dataclass(frozen=True, kw_only=True)
class Others:
    """What moves the parameters that are no matrices: embeddings, heads, norms, biases, filters.

    Args:
        rule: Adam unless given.
        lr: theirs; ``None``: the same.
        weight_decay: of those that decay (:func:`nestling.optim.groups.decays`); ``None``: the
            same.

    Raises:
        ValueError: naming what does not fit.
    """

    rule: GradientRule = adam((0.9, 0.95))
    lr: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.rule.matrices:
            raise ValueError(f"rule: {self.rule.name} is for matrices only")
        for name in ("lr", "weight_decay"):
            if getattr(self, name) is not None:
                check_at_least(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class Handling:
    """How numbers are kept and checked; nothing of it changes what is computed in float32.

    Args:
        master_weights: keep a float32 copy of parameters of fewer bits: a step smaller than their
            last bit is not lost.
        capturable: no step asks the device for a number, so that it can be captured as a graph.
            What happens at the end of a period is then computed at every step.
        check_finite: make sure that no gradient is NaN or infinite before anything moves; asks the
            device for one number a step, so not where ``capturable``.
    """

    master_weights: bool = False
    capturable: bool = False
    check_finite: bool = True


OTHERS, HANDLING = Others(), Handling()


class GeneralizedMomentum(torch.optim.Optimizer):
    """An optimizer that is a value: momentum, Adam, Muon, AdaMuon, M3 and what you make of them.

    Args:
        params: a model, named parameters, parameters, or groups. With names or a model, what is no
            matrix is known (:mod:`nestling.optim.roles`).
        rule: what gradients become.
        lr: learning rate.
        weight_decay: share of a matrix that is lost at each step, times ``lr``. Norms, biases and
            embeddings have none.
        others: for what is no matrix, where the rule is for matrices only.
        handling: of numbers.
        roles: by name, where they are not to be told from names and shapes.

    State is float32, or float64 for parameters that are.

    Raises:
        ValueError: naming what does not fit.
        NonFiniteError: from ``step``, naming a gradient; nothing has been moved then.

    >>> from nestling.optim.gradient_memory import GradientMemory
    >>> W = torch.nn.Parameter(torch.zeros(2))
    >>> momentum = GradientRule(name="momentum", memories=(GradientMemory(keep=0.9),))
    >>> optimizer = GeneralizedMomentum([W], momentum, lr=0.1)
    >>> for _ in range(2):
    ...     W.grad = torch.ones(2)
    ...     optimizer.step()
    >>> W.detach()                                     # -0.1 (1 + 1.9)
    tensor([-0.2900, -0.2900])
    """

    copied: tuple[str, ...] = ("rule", "others", "handling", "_roles")
    """Attributes that a copy has too, beside groups and state."""

    def __init__(
        self,
        params: Params,
        rule: GradientRule,
        *,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.0,
        others: Others = OTHERS,
        handling: Handling = HANDLING,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        check_at_least("lr", float(lr))
        check_at_least("weight_decay", weight_decay)
        self.rule, self.others, self.handling = rule, others, handling
        self._roles = roles
        defaults = {"lr": lr, "weight_decay": weight_decay, "by": MAIN, "decays": True}
        super().__init__(groups_of(params, split=rule.matrices, known=roles), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; those that are no matrices become a group of their own.

        Raises:
            ValueError: if a parameter is complex, or no matrix where the rule needs one.
        """
        groups = groups_of([param_group], split=self.rule.matrices, known=self._roles)
        for group in groups:
            for parameter in group["params"]:
                _check_parameter(parameter, self._rule(group))
            added = {**self._defaults(group), **group, "rule": self._rule(group).name}
            for name in ("lr", "weight_decay"):
                check_at_least(name, float(added.get(name, 0.0)))
            super().add_param_group(added)

    def _defaults(self, group: Mapping[str, Any]) -> dict[str, Any]:
        said = {} if group["by"] == MAIN else {
            name: value
            for name in ("lr", "weight_decay")
            if (value := getattr(self.others, name)) is not None
        }  # fmt: skip
        return said if group["decays"] else {**said, "weight_decay": 0.0}

    def _rule(self, group: Mapping[str, Any]) -> GradientRule:
        return self.rule if group["by"] == MAIN else self.others.rule

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move everything that has a gradient.

        Args:
            closure: computes the loss again and its gradients.

        Returns:
            What the closure returned.

        Raises:
            NonFiniteError: if a gradient is NaN or infinite; nothing has been moved.
            ValueError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_gradients()
        for group in self.param_groups:
            for batch, clock in self._batches(group):
                self._move(group, batch, clock)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict()`` was taken, to the bit, in the middle of periods too.

        Raises:
            ValueError: if the state is another rule's.
        """
        for own, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            self._check_state(own, saved, state_dict["state"])
        super().load_state_dict(state_dict)
        # torch casts all state to the parameter's dtype; ours is float32 beside bfloat16
        ids = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        mine = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, parameter in zip(ids, mine, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                now = self.state[parameter][name]
                if isinstance(value, Tensor) and now.dtype != value.dtype:
                    self.state[parameter][name] = value.detach().clone().to(now.device)
            if "step" in self.state[parameter]:
                self.state[parameter]["step"] = self.state[parameter]["step"].to(
                    self._clocks_on(parameter)
                )

    def __getstate__(self) -> dict[str, Any]:
        """For copies: torch's names only what every optimizer has."""
        own = {name: self.__dict__[name] for name in self.copied}
        return {**super().__getstate__(), **own}

    @property
    def name(self) -> str:
        """Of its rule, for tables."""
        return self.rule.name

    def remembered(self, group: Mapping[str, Any]) -> dict[str, Remembered]:
        """What its state remembers, for a table of levels."""
        return remembered(self._rule(group))

    def entries(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what its state holds for a parameter of a shape, but the clock."""
        return dict(self._rule(group).entries(shape))

    def __repr__(self) -> str:
        lines = []
        for group in self.param_groups:
            count, size = len(group["params"]), sum(p.numel() for p in group["params"])
            how = f"lr {float(group['lr']):g}, weight decay {group['weight_decay']:g}"
            lines.append(f"  {group['rule']}: {count} parameters, {size:,} numbers, {how}")
        return "\n".join([f"{type(self).__name__} (", *lines, ")"])

    def _check_state(
        self, own: Mapping[str, Any], saved: Mapping[str, Any], states: Mapping[Any, Any]
    ) -> None:
        rule = saved.get("rule")
        if rule != own["rule"]:
            other = "that of another optimizer" if rule is None else repr(rule)
            raise ValueError(f"state_dict: expected a state of {own['rule']!r}, got {other}")
        for key, parameter in zip(saved["params"], own["params"], strict=False):
            held = states.get(key, {})
            for name, shape in self.entries(own, parameter.shape).items():
                found = tuple(held[name].shape) if name in held else None
                if "step" in held and found != shape:
                    got = "none" if found is None else f"shape {found}"
                    raise ValueError(f"state_dict: {name} of {rule}: expected {shape}, got {got}")

    def _check_gradients(self) -> None:
        named = [
            (name, p.grad)
            for group in self.param_groups
            for name, p in zip(_names(group), group["params"], strict=True)
            if p.grad is not None
        ]
        for name, gradient in named:
            if gradient.layout != torch.strided:
                raise ValueError(f"params: the gradient of {name} is sparse, expected a dense one")
        if not self.handling.check_finite or self.handling.capturable or not named:
            return
        if not bool(whole(get_total_norm([gradient for _, gradient in named])).isfinite()):
            broken = [
                name for name, gradient in named if not bool(whole(gradient).isfinite().all())
            ]
            where = f"of {broken[0]} ({len(broken)} in all)" if broken else "norm (it overflows)"
            raise NonFiniteError(f"the gradient {where} is not finite")

    def _batches(self, group: Mapping[str, Any]) -> Iterator[tuple[list[Tensor], Clock]]:
        """Parameters that are moved together, and their time with this step."""
        rule, sorted_by = self._rule(group), defaultdict[Any, list[Tensor]](list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "step" not in state:
                self._begin(state, parameter, rule)
            state["step"] += 1
            key: tuple[Any, ...] = (parameter.device, parameter.dtype)
            if not self.handling.capturable:
                key = (*key, int(state["step"]))
            if rule.by_shape:
                key = (*key, parameter.shape)
            sorted_by[key].append(parameter)
        for same in sorted_by.values():
            most = max(1, BATCH // max(1, same[0].numel())) if rule.by_shape else len(same)
            for start in range(0, len(same), most):
                batch = same[start : start + most]
                steps = [self.state[parameter]["step"] for parameter in batch]
                yield batch, Clock(steps if self.handling.capturable else int(steps[0]))

    def _clocks_on(self, parameter: Tensor) -> torch.device:
        return parameter.device if self.handling.capturable else torch.device("cpu")

    def _begin(self, state: dict[str, Any], parameter: Tensor, rule: GradientRule) -> None:
        state["step"] = torch.zeros((), dtype=torch.float32, device=self._clocks_on(parameter))
        full = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))
        state.update(rule.zeros(full))
        if self.handling.master_weights and full.dtype != parameter.dtype:
            state["master"] = full

    def _gradient(self, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
        """What is written for a parameter, in its state's dtype."""
        gradient = cast(Tensor, parameter.grad)
        return gradient.to(torch.promote_types(parameter.dtype, torch.float32))

    def _move(self, group: Mapping[str, Any], batch: Sequence[Tensor], clock: Clock) -> None:
        states = [self.state[parameter] for parameter in batch]
        gradients = [self._gradient(parameter, group) for parameter in batch]
        steps = self._rule(group).update(states, gradients, clock)
        moved = [state.get("master", p) for state, p in zip(states, batch, strict=True)]
        _subtract(moved, steps, lr=group["lr"], weight_decay=group["weight_decay"])
        for parameter, target in zip(batch, moved, strict=True):
            if target is not parameter:
                parameter.copy_(target)


def _subtract(
    targets: list[Tensor], steps: list[Tensor], *, lr: float | Tensor, weight_decay: float
) -> None:
    if isinstance(lr, Tensor):
        for target, step in zip(targets, steps, strict=True):
            target.mul_(1 - lr * weight_decay).sub_((lr * step).to(target.dtype))
        return
    if weight_decay:
        torch._foreach_mul_(targets, 1 - lr * weight_decay)
    steps = [step.to(target.dtype) for step, target in zip(steps, targets, strict=True)]
    torch._foreach_add_(targets, steps, alpha=-lr)


def _names(group: Mapping[str, Any]) -> list[str]:
    count = len(group["params"])
    return group.get("param_names") or [f"parameter {index}" for index in range(count)]


def _check_parameter(parameter: Any, rule: GradientRule) -> None:
    parameter = parameter[1] if isinstance(parameter, tuple) else parameter
    if not parameter.is_floating_point():
        raise ValueError(f"params: expected real floating-point numbers, got {parameter.dtype}")
    if rule.matrices and parameter.ndim < 2:
        raise ValueError(
            f"params: {rule.name} is for matrices, got shape {tuple(parameter.shape)}; "
            "put it in a group with by='others'"
        )
