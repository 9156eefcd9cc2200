"""What an optimizer is given, as parameter groups that each go by one rule.

a model                     its parameters by name, and what each of them is (roles.py)
(name, parameter) pairs     what each is, by its name and shape
parameters, groups of them  by shape alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args

from torch import nn
from torch.nn import Parameter

from nestling.optim.groups import decays
from nestling.optim.roles import MATRICES, Role, role_of, roles
from nestling.shapes import Tensor

Params = nn.Module | Iterable[Any]
MAIN, OTHERS = "main", "others"
"""The values of a group's ``"by"``: the optimizer's own rule, and the one for everything else."""


def groups_of(
    params: Params, *, split: bool, known: Mapping[str, Role] | None = None
) -> list[dict[str, Any]]:
    """Parameter groups with ``"by"`` in each; empty ones left out.

    Args:
        params: see the module. A group that says ``"by"`` itself is taken as it is.
        split: matrices go by the optimizer's rule and all else does not; otherwise all does.
        known: roles by name, where they are known better than by name and shape.

    Raises:
        ValueError: if there is no parameter, a group is empty, or a role is none.
        TypeError: if something is no parameter.

    >>> groups = groups_of(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), split=True)
    >>> [(group["by"], group["param_names"], group["decays"]) for group in groups]
    [('main', ['0.weight'], True), ('others', ['0.bias', '1.weight', '1.bias'], False)]
    """
    for role in (known or {}).values():
        if role not in get_args(Role):
            raise ValueError(f"roles: expected some of {get_args(Role)}, got {role!r}")
    if isinstance(params, nn.Module):
        known = {**roles(params), **(known or {})}
        params = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
    elif isinstance(params, Tensor):
        raise TypeError("params: expected a model, parameters or groups of them, got one tensor")
    given = list(params)
    if not given:
        raise ValueError("params: expected at least one parameter, got none")
    if not isinstance(given[0], dict):
        given = [{"params": given}]
    found = []
    for index, group in enumerate(given):
        members = group["params"]
        members = [members] if isinstance(members, Tensor) else list(members)
        if not members:
            raise ValueError(f"params: group {index} is empty")
        for member in members:
            one = member[1] if isinstance(member, tuple) else member
            if not isinstance(one, Tensor):
                raise TypeError(f"params: expected parameters, got {type(one).__name__}")
        found += _divided({**group, "params": members}, split, known or {})
    return found


def _divided(group: dict[str, Any], split: bool, known: Mapping[str, Role]) -> list[dict[str, Any]]:
    if "by" in group:
        if group["by"] not in (MAIN, OTHERS):
            raise ValueError(f"by: expected {MAIN!r} or {OTHERS!r}, got {group['by']!r}")
        return [{"decays": True, **group}]
    names = group.get("param_names")
    if names is not None:
        group = {**group, "params": list(zip(names, group["params"], strict=True))}
    kinds: dict[tuple[str, bool], list[tuple[str, Parameter]]] = {}
    named = isinstance(group["params"][0], tuple)
    for member in group["params"]:
        name, parameter = member if named else ("", member)
        by = MAIN
        if split and (known.get(name) or role_of(name, parameter)) not in MATRICES:
            by = OTHERS
        kinds.setdefault((by, decays(name, parameter)), []).append((name, parameter))
    return [
        {
            **group,
            "by": by,
            "decays": fades,
            "params": [parameter for _, parameter in members],
            **({"param_names": [name for name, _ in members]} if named else {}),
        }
        for (by, fades), members in sorted(
            kinds.items(), key=lambda pair: (pair[0][0], not pair[0][1])
        )
    ]
