"""Level stacking on pre-trained models: make one, save it, and load it again (NL 7.3).

MLP blocks of a trained model  =  initial states of levels
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nestling.continuum import AcrossContexts, ContinuumLevel, InContext
from nestling.continuum.named import levels_of, named
from nestling.hf.plan import PLANS, Plan, StackConfig
from nestling.hf.stacked import StackedModel
from nestling.levels import Level


def stack_levels(
    model: Any,
    levels: Sequence[Any],
    *,
    plan: Any = "layer_mod_levels",
    layers: Sequence[int] | None = None,
    regime: Any = "in_context",
    source: Any = "backprop",
    error_rule: Any = "gradient_descent",
    step_size: float = 0.1,
    kept: float = 1.0,
    matrices: str = "last",
    rank: int | None = None,
    window: int | None = None,
) -> StackedModel:
    """Make the MLPs of a pre-trained model levels that move while it reads.

    Args:
        model: of transformers, a decoder or an encoder that predicts tokens and whose blocks hold
            an MLP. It is not copied and not changed; its parameters may be frozen or trained.
        levels: the fastest first: ``Level(period)`` takes all that follows, a ``ContinuumLevel``
            brings its own.
        plan: ``"layer_mod_levels"``: the MLP of the j-th chosen layer is level ``j mod k``;
            ``"split"``: all levels in each layer, which share its hidden units.
        layers: indices of the layers that are stacked; ``None``: all.
        regime: ``"in_context"``: written for every text by itself; ``"across_contexts"``: the
            weights themselves are the levels, see ``parameter_levels``; or an ``InContext`` value,
            which brings all that follows but for the last three. One or one for each.
        source: ``"backprop"``, ``"backprop_second_order"``, or ``Backprop(order, chunk)``.
        error_rule: ``"gradient_descent"``, ``"delta"``, ``"heavy_ball"``, ``"adam"``, or a value.
        step_size: of every write; 0 is the original model.
        kept: share of what was written that stays at each write.
        matrices: of each MLP the ``"last"`` matrix is written, or ``"every"`` one.
        rank: of what is written; ``None``: full matrices.
        window: most tokens that attention finds in the cache when a chunk starts; ``None``: all,
            or, where positions are learned, as many as the model has.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> llama = LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=32,
    ...     num_hidden_layers=2, num_attention_heads=2))
    >>> stacked = stack_levels(llama, [Level(period=16), Level(period=64)])
    >>> ids = torch.tensor([list(b"a text that is learned while it is read, period by period, so "
    ...                          b"that it is there later")])
    >>> with torch.no_grad():
    ...     loss, state = stacked.observe(ids)
    >>> stacked.writes(state)
    {'0': 5.0, '1': 1.0}
    """
    if isinstance(levels, str) or not isinstance(levels, Sequence) or not levels:
        raise ValueError(f"levels: expected a list of Level, got {levels!r}")
    each = regime if isinstance(regime, tuple | list) else (regime,) * len(levels)
    if len(each) != len(levels):
        raise ValueError(f"regime: expected one for each of {len(levels)} levels, got {len(each)}")
    config = StackConfig(
        levels=tuple(
            _level(one, own, source=source, error_rule=error_rule, step_size=step_size, kept=kept)
            for one, own in zip(levels, each, strict=True)
        ),
        plan=named("plan", plan, PLANS, Plan),
        layers=None if layers is None else tuple(layers),
        matrices=matrices, rank=rank, window=window,
    )  # fmt: skip
    return StackedModel(model, config)


def _level(level: Any, regime: Any, **changes: Any) -> ContinuumLevel:
    if isinstance(level, ContinuumLevel):
        return level
    if not isinstance(level, Level):
        raise ValueError(f"levels: expected Level or ContinuumLevel, got {level!r}")
    if regime == "across_contexts":
        return ContinuumLevel(level.period)
    if isinstance(regime, InContext | AcrossContexts):
        return ContinuumLevel(level.period, regime)
    found = levels_of((level.period,), regime=regime, **changes)
    return found[0] if found else ContinuumLevel(level.period)
