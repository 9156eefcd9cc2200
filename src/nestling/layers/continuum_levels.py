"""What the levels of a Continuum Memory System say of themselves, for the level table.

level across contexts    weights, which the outer optimizer moves
level in context         a state, which starts from weights (``.learned``) and moves by itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from nestling.continuum.config import InContext, Independent
from nestling.continuum.source import Backprop, Local
from nestling.levels import NEXT_TOKEN, OUTER, Component, Joint, Transfer, path, weights_of

if TYPE_CHECKING:
    from nestling.layers.continuum import ContinuumMemory, MemoryLevel


def level_components(memory: ContinuumMemory, name: str) -> list[Component]:
    """Every level, the weights behind those in context, and the mixture of independent levels."""
    found, joints, out = [], level_joints(memory, name), exit_joint(memory, name)
    chain, mixed = memory.chain(), isinstance(memory.config.variant, Independent)
    for index, (level, joint) in enumerate(zip(_levels(memory), joints, strict=True)):
        before = joints[index - 1].speaks if index else None
        first, *rest = _of_level(level, joint.speaks, before)
        if joint != out:
            first = first.linked(*joint.then(out if mixed else joints[index + 1]))
        slower = chain.slower_than(index) if level.spec.in_context else None
        if slower is not None:
            first = first.linked(Transfer("initialisation", path(name, slower.name), joint.speaks))
        found += [first, *rest]
    if mixed:
        found.append(weights_of(memory, name, own="mix", memory="weights of the levels' sum",
                                keep=lambda n: n == "mix_scale"))  # fmt: skip
    return found


def level_joints(memory: ContinuumMemory, name: str) -> list[Joint]:
    """Where each level stands in the gradient flow, fastest first."""
    found = []
    for index, level in enumerate(_levels(memory)):
        own, regime = path(name, f"levels.{index}"), level.spec.regime
        if not isinstance(regime, InContext):
            found.append(Joint(own))
            continue
        moved = (
            (own,) if isinstance(regime.source, Backprop) and level.step_scale is not None else ()
        )
        found.append(Joint(own, (*moved, path(own, "learned"))))
    return found


def entry_joints(memory: ContinuumMemory, name: str) -> list[Joint]:
    """What the residual stream meets first."""
    joints = level_joints(memory, name)
    return joints if isinstance(memory.config.variant, Independent) else joints[:1]


def exit_joint(memory: ContinuumMemory, name: str) -> Joint:
    """What the residual stream leaves from."""
    if isinstance(memory.config.variant, Independent):
        return Joint(path(name, "mix"))
    return level_joints(memory, name)[-1]


def _levels(memory: ContinuumMemory) -> list[MemoryLevel]:
    return cast("list[MemoryLevel]", list(memory.levels))


def _of_level(level: MemoryLevel, name: str, before: str | None) -> list[Component]:
    regime, memory = level.spec.regime, f"SwiGLU MLP, hidden {level.hidden}"
    if not isinstance(regime, InContext):
        return [
            weights_of(level, name, own="", level=level.level, memory=memory,
                       rule=f"{OUTER}, gradient gathered over the period")
        ]  # fmt: skip
    flow, objective = "tokens, error of the next-token loss", NEXT_TOKEN
    if isinstance(regime.source, Local):
        flow = "tokens, own projections"
        objective = f"{type(regime.source.objective).__name__}(M(q_t), v_t)"
    learned = weights_of(level, name, own="learned", memory=f"initial state, {memory}")
    size = sum(p.numel() for p in level.mlp.parameters())
    retention = f"DecayToInitial({regime.share_kept:g})" if regime.share_kept < 1 else "Keep"
    fast = Component(
        name=name,
        level=level.level,
        memory=memory,
        rule=f"{regime.source.name} x {type(regime.error_rule).__name__} x {retention}, per period",
        context_flow=flow,
        parameters=size * (1 + len(regime.error_rule.moments)),
        objective=objective,
        after=() if before is None else (before,),
    )
    starts = Transfer("initialisation", learned.name, name)
    back = Transfer("backpropagation", name, learned.name)
    makes = Transfer("generation", learned.name, name)  # its step size, keys and targets
    written = level.step_scale is not None
    return [fast.linked(starts, back, makes) if written else fast.linked(starts, back), learned]
