"""What the state of a rule remembers: a line of the level table for each memory."""

from __future__ import annotations

from dataclasses import dataclass

from nestling.optim.gradient_memory import GradientMemory
from nestling.optim.gradient_rule import GradientRule

GRADIENTS, SQUARES = "gradients", "squared gradients"


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """One entry of an optimizer's state.

    Attributes:
        rule: how it is written.
        context_flow: what it compresses.
        objective: what that minimises.
        memory: what it is.
        period: steps between two of its writes.
        after: entries of the state that it needs before it.
    """

    rule: str
    context_flow: str = GRADIENTS
    objective: str = "-<M, g>"
    memory: str = "one number per weight"
    period: int = 1
    after: tuple[str, ...] = ()


def remembered(rule: GradientRule) -> dict[str, Remembered]:
    """Every entry of a rule's state but the clock.

    >>> from nestling.optim.adam import adam
    >>> {key: (said.rule, said.context_flow) for key, said in remembered(adam()).items()}
    {'momentum': ('DotProduct x Decay(0.9)', 'gradients'),
     'second_moment': ('DotProduct x Decay(0.999)', 'squared gradients')}
    """
    found: dict[str, Remembered] = {}
    read = []
    for memory in rule.memories:
        declared = getattr(memory, "remembered", None)
        if declared is not None:
            found |= declared()
            continue
        assert isinstance(memory, GradientMemory)
        found[memory.name] = Remembered(rule=memory.rule, period=memory.period)
        read.append(memory.name)
        if memory.period > 1:
            found[memory.held] = Remembered(
                rule="held", period=memory.period, after=(memory.name,),
                context_flow=f"answers of {memory.name}", objective="",
            )  # fmt: skip
            read[-1] = memory.held
    V = rule.second_moment
    if V is not None:
        kept = "Keep" if V.keep == 1 else f"Decay({V.keep:g})"
        of_update = V.of == "update"
        found[V.name] = Remembered(
            rule=f"DotProduct x {kept}",
            context_flow="squared updates" if of_update else SQUARES,
            objective="-<M, u^2>" if of_update else "-<M, g^2>",
            after=tuple(read) if of_update else (),
        )
    return found
