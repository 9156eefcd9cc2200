"""Which linear maps of a Hope model may carry a LoRA adapter, and adapters as a slow level.

    y = x W + s x A B            W is held, A and B are learned (Hu et al. 2021; extra ``peft``)

An adapter belongs beside a map that the model applies. The learned initial states of inner memories
are no such maps: they are the place where a state starts, which the model reads and then writes.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import Parameter

from nestling.layers.continuum import MemoryLevel
from nestling.levels import Level
from nestling.models import LanguageModel


def lora_targets(model: nn.Module) -> list[str]:
    """Paths of the maps in the blocks, for ``LoraConfig(target_modules=...)``.

    These are the projections into and out of the sequence layer, its output gate, the MLPs of
    levels across contexts, and the projections for keys and targets of levels in context. They are
    not: initial memories and generators, the MLPs of levels in context (the initial states of what
    is written there), convolutions and step sizes, and the embedding, which is also the head.

    Args:
        model: a ``HopeForCausalLM``, a ``HopeModel`` or a :class:`LanguageModel`.

    Raises:
        ValueError: if it is none.

    >>> from nestling.models import build
    >>> for path in lora_targets(build("hope", width=16, heads=2, layers=1, periods=(1,))):
    ...     print(path)
    blocks.0.mixer.project.k
    blocks.0.mixer.project.v
    blocks.0.mixer.project.q
    blocks.0.mixer.gate
    blocks.0.mixer.out
    blocks.0.continuum.levels.0.mlp.gate_up
    blocks.0.continuum.levels.0.mlp.down
    """
    own = [name for name, part in model.named_modules() if isinstance(part, LanguageModel)]
    if len(own) != 1:
        raise ValueError(f"model: expected a HopeForCausalLM, got {type(model).__name__}")
    prefix = f"{own[0]}." if own[0] else ""
    within = model.get_submodule(own[0])
    states = tuple(
        f"{prefix}{name}.mlp."
        for name, part in within.named_modules()
        if isinstance(part, MemoryLevel) and part.spec.in_context
    )
    return [
        prefix + name
        for name, part in within.named_modules()
        if isinstance(part, nn.Linear) and not (prefix + name).startswith(states)
    ]


def adapter_level(model: nn.Module, period: int) -> tuple[Level, dict[str, Parameter]]:
    """The adapters of a model as one level, for :class:`nestling.optim.LevelwiseOptimizer`.

    peft freezes everything else, so that these are the only weights that move across contexts. On a
    :class:`nestling.hf.StackedModel` they are its slowest level: those in context are written for
    each text and forgotten, adapters keep what was common to all of them.

    Args:
        model: behind ``peft.get_peft_model``, or a stack on such a model.
        period: of tokens, between two moves.

    Raises:
        ValueError: if there is no adapter that is trained.

    >>> adapter_level(nn.Linear(2, 2), 512)
    Traceback (most recent call last):
    ...
    ValueError: model: expected adapters of peft in Linear, found none that is trained
    """
    found: dict[str, Parameter] = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and _adapts(name)
    }
    if not found:
        raise ValueError(
            f"model: expected adapters of peft in {type(model).__name__}, found none that is "
            "trained"
        )
    return Level(period), found


def _adapts(name: Any) -> bool:
    return any(part.startswith("lora_") for part in name.split("."))
