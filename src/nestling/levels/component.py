"""What a nested system consists of: components, and how knowledge moves between them (NL Def. 3).

    component = (objective, context flow, parameters, rule, level)          NL Def. 3
    transfer  = (kind, source, target)                                      NL 3.3

Every part that holds something over time declares itself as a :class:`Component`: recurrent
memories, blocks of weights, and the moments of the optimizer alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from nestling.levels.level import Level

TransferKind = Literal[
    "conditioning", "non_parametric", "backpropagation", "initialisation", "generation"
]
"""How knowledge moves (NL 3.3).

``conditioning``: the target computes with the source's parameters or outputs; ``non_parametric``:
with the solution of a problem that keeps its data, as softmax attention does;
``backpropagation``: the target moves by an error that comes back through the source;
``initialisation``: the target starts at a state that the source learned; ``generation``: the
source makes the target's context flow or step sizes (keys and values, gradients).
"""

Kind = Literal["in_context", "non_parametric", "weights", "moments"]
"""What sort of memory: carried in the inner state and written by a rule; a cache of what was read;
trained weights; what training remembers beside them, be it of their gradients (an optimizer) or of
themselves (a slow level)."""

NEXT_TOKEN = "-ln p(x_t+1)"
"""Objective of what learns to predict the next token."""

OUTER = "outer optimizer"
"""How the rule of a component with ``weights`` says that whatever trains it moves it."""


@dataclass(frozen=True)
class Transfer:
    """Knowledge that moves from one component to another.

    Args:
        kind: one of :data:`TransferKind`.
        source: name of a component.
        target: the same.

    Raises:
        ValueError: for an unknown kind.

    >>> Transfer("initialisation", "W", "memory").target
    'memory'
    """

    kind: str
    source: str
    target: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(TransferKind):
            raise ValueError(f"kind: expected one of {get_args(TransferKind)}, got {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class Component:
    """One associative memory of the system.

    Attributes:
        name: path inside the model, for example ``blocks.0.mixer.memory``.
        level: how often it is updated.
        memory: what it is ("MLP 32-32-32 x 4 heads").
        rule: how it is written ("L2 x Delta(Decay)", "AdamW").
        context_flow: what it compresses ("tokens", "gradients").
        parameters: numbers it holds, per sequence for recurrent states.
        after: names of components of the same frequency whose state at t it needs at t; they
            come first (second case of NL Def. 2).
        objective: what its rule minimises ("1/2 |M(k) - v|^2").
        kind: what sort of memory it is, one of :data:`Kind`.
        weights: names of the trained parameters that it consists of; none if it is a state that
            is carried.
        transfers: knowledge that comes to it or goes from it, as far as this part of the model
            knows; each is declared once, at either end.
    """

    name: str
    level: Level
    memory: str
    rule: str
    context_flow: str
    parameters: int
    after: tuple[str, ...] = ()
    objective: str = ""
    kind: str = "in_context"
    weights: tuple[str, ...] = ()
    transfers: tuple[Transfer, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind: expected one of {get_args(Kind)}, got {self.kind!r}")

    def linked(self, *transfers: Transfer) -> Component:
        """The same with more transfers: what a container adds about its parts."""
        return dataclasses.replace(self, transfers=(*self.transfers, *transfers))

    def holding(self, module: nn.Module, name: str) -> Component:
        """The same with the parameters of one more module, whose path is ``name``."""
        more = dict(module.named_parameters(prefix=name))
        return dataclasses.replace(
            self,
            weights=(*self.weights, *more),
            parameters=self.parameters + sum(p.numel() for p in more.values()),
        )


def weights_of(
    module: nn.Module,
    name: str,
    *,
    own: str = "weights",
    keep: Callable[[str], bool] = lambda name: True,
    **said: Any,
) -> Component:
    """A component of a module's trained parameters, moved by whatever trains the model.

    Args:
        module: whose parameters.
        name: its path in the model.
        own: name of the component behind that path.
        keep: which of them, by their names in the module; the others belong elsewhere.
        **said: other fields of the component, ``memory`` among them.

    >>> said = weights_of(nn.Linear(2, 3), "out", memory="matrix")
    >>> said.name, said.weights, said.parameters
    ('out.weights', ('out.weight', 'out.bias'), 9)
    """
    held = {n: p for n, p in module.named_parameters() if keep(n)}
    values = {
        "level": Level(1),
        "rule": OUTER,
        "context_flow": "tokens, error of the next-token loss",
        "objective": NEXT_TOKEN,
        **said,
    }
    return Component(
        name=path(name, own),
        kind="weights",
        weights=tuple(path(name, n) for n in held),
        parameters=sum(p.numel() for p in held.values()),
        **values,
    )


def path(*names: str) -> str:
    """Names joined by dots; empty ones, as that of the model itself, leave no dot.

    >>> path("", "blocks", "0"), path("model", "")
    ('blocks.0', 'model')
    """
    return ".".join(name for name in names if name)


@dataclass(frozen=True)
class Joint:
    """A place where parts of a model follow each other in one gradient flow.

    Attributes:
        speaks: name of the component whose output arrives here.
        moved: names of the components that an error coming back to here moves; ``speaks`` alone
            unless given.

    >>> [(t.kind, t.source, t.target) for t in Joint("a").then(Joint("b"))]
    [('conditioning', 'a', 'b'), ('backpropagation', 'b', 'a')]
    """

    speaks: str
    moved: tuple[str, ...] = ()

    def then(self, other: Joint) -> tuple[Transfer, ...]:
        """Outputs go on to ``other``, errors come back through it."""
        back = (
            Transfer("backpropagation", other.speaks, name) for name in self.moved or (self.speaks,)
        )
        return Transfer("conditioning", self.speaks, other.speaks), *back
