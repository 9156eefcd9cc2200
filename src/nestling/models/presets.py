"""Presets: known models as values. One dial, ``size``, derives the rest.

A preset is a mixer (memory x rule) and a continuum of levels; nothing here is a class.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from nestling.continuum import VARIANTS, Variant
from nestling.continuum.named import levels_of, named
from nestling.layers import AttentionConfig, ContinuumConfig, SelfModifyingConfig
from nestling.layers.block import MixerConfig
from nestling.memory import DecayToInitial, Delta, DotProduct, Keep, LearningRule, Momentum
from nestling.models.config import ModelConfig
from nestling.models.language_model import LanguageModel

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (128, 4, 2),
    "mini": (256, 4, 4),
    "small": (512, 8, 8),
    "base": (768, 12, 12),
    "340m": (1024, 16, 24),
    "760m": (1536, 24, 24),
    "1.3b": (2048, 32, 24),
}
"""Name to (width, heads, layers)."""

HOPE_PERIODS = (1, 8_192, 65_536)

MIXERS: dict[str, MixerConfig] = {
    "hope": SelfModifyingConfig(),
    "hope_attention": AttentionConfig(),
    "transformer": AttentionConfig(),
    # A chunk's gradients are added up at its anchor: without DGD, which bounds their sum, the step
    # sizes must, or one stretch of similar keys overshoots (32 x 1/32 = 1). Decay toward zero
    # (``Decay()``, as printed) drove gradients to 2,000 within 50 steps (decisions/0009).
    "titans": SelfModifyingConfig(
        adaptive=("memory",),
        rule=LearningRule(retention=DecayToInitial(), momentum=Momentum(), hidden_step=0.1),
        eta_max=1 / 32,
        eta_init=1 / 64,
    ),
    # The delta rule, exact for every chunk size: DotProduct x Delta is L2 at the current memory.
    "deltanet": SelfModifyingConfig(
        adaptive=("memory",),
        hidden=0,
        rule=LearningRule(objective=DotProduct(), retention=Delta(decay=Keep())),
    ),
    "gated_deltanet": SelfModifyingConfig(
        adaptive=("memory",),
        hidden=0,
        rule=LearningRule(objective=DotProduct(), retention=Delta()),
    ),
    "linear_attention": SelfModifyingConfig(
        adaptive=("memory",), hidden=0, rule=LearningRule(objective=DotProduct(), retention=Keep())
    ),
}
"""Name to sequence layer."""

PERIODS = {"hope": HOPE_PERIODS, "hope_attention": HOPE_PERIODS}
"""Update periods of the levels behind it, in tokens; one level that always moves elsewhere."""


LEVELS = ("periods", "hidden", "variant", "regime", "source", "error_rule", "step_size", "kept")
"""Overrides of the levels."""


def configure(preset: str, *, size: str = "tiny", **overrides: Any) -> ModelConfig:
    """The configuration of a preset.

    Args:
        preset: a name in ``MIXERS``.
        size: a name in ``SIZES``.
        **overrides: any field of ``ModelConfig`` or of the preset's mixer by name
            (``memory_hidden`` is the mixer's own ``hidden``); and of the levels ``periods``,
            ``hidden``, ``variant`` ("sequential", "nested", "independent"), ``regime``
            ("across_contexts", "in_context", or a tuple with one for each level), and for levels
            in context ``source`` ("local", "backprop", ...), ``error_rule`` ("delta", "adam", ...),
            ``step_size`` and ``kept``; words are those of ``nestling.continuum.named``.

    Raises:
        ValueError: for an unknown preset, size or override, naming it.

    >>> configure("transformer", size="tiny").continuum.hidden
    352
    >>> hope = configure("hope", periods=(64, 512), variant="nested", regime="in_context")
    >>> [level.in_context for level in hope.continuum.levels]
    [True, True]
    """
    if preset not in MIXERS:
        raise ValueError(f"preset: expected one of {sorted(MIXERS)}, got {preset!r}")
    if size not in SIZES:
        raise ValueError(f"size: expected one of {list(SIZES)}, got {size!r}")
    width, heads, layers = SIZES[size]
    width = overrides.pop("width", width)
    continuum = _continuum(width, PERIODS.get(preset, (1,)), overrides)
    mixer = MIXERS[preset]
    names = {f.name for f in dataclasses.fields(mixer)} - {"hidden"}
    inner = {name: overrides.pop(name) for name in list(overrides) if name in names}
    if "memory_hidden" in overrides and isinstance(mixer, SelfModifyingConfig):
        inner["hidden"] = overrides.pop("memory_hidden")
    known = {f.name for f in dataclasses.fields(ModelConfig)} - {"preset"}
    unknown = sorted(set(overrides) - known)
    if unknown:
        allowed = sorted(known | names | set(LEVELS))
        raise ValueError(f"{unknown[0]}: unknown override, expected one of {allowed}")
    values = {
        "preset": preset,
        "heads": heads,
        "layers": layers,
        "mixer": dataclasses.replace(mixer, **inner),
        "continuum": continuum,
        **overrides,
    }
    return ModelConfig(width=width, **values)


def _continuum(
    width: int, periods: tuple[int | None, ...], overrides: dict[str, Any]
) -> ContinuumConfig:
    """The levels, whose own overrides are taken out."""
    given = {name: overrides.pop(name) for name in LEVELS if name in overrides}
    periods = tuple(given.pop("periods", periods))
    hidden = given.pop("hidden", None)
    if hidden is None:
        hidden = max(16, round(8 * width / 3 / max(1, len(periods)) / 16 + 0.49) * 16)
    variant = named("variant", given.pop("variant", "sequential"), VARIANTS, Variant)
    levels = levels_of(periods, **given)
    return ContinuumConfig(periods=periods, hidden=hidden, levels=levels, variant=variant)


def build(preset: str, *, size: str = "tiny", **overrides: Any) -> LanguageModel:
    """A new model from a preset.

    Args:
        preset: ``"hope"``, ``"hope_attention"``, ``"transformer"``, ``"titans"``, ...
        size: the one dial, from ``"tiny"`` to ``"1.3b"``.
        **overrides: see :func:`configure`.

    Raises:
        ValueError: for an unknown preset, size or override, naming it.

    >>> model = build("hope", width=32, heads=2, layers=1, vocab_size=256)
    >>> len(model.blocks), model.config.width
    (1, 32)
    """
    return LanguageModel(configure(preset, size=size, **overrides))


def match_parameters(
    preset: str, target: int, *, size: str = "tiny", **overrides: Any
) -> ModelConfig:
    """The preset with its levels' hidden size chosen so that it has ``target`` parameters.

    Raises:
        ValueError: if even the nearest hidden size is more than 1 % off.

    >>> transformer = build("transformer", width=64, heads=2)
    >>> target = sum(p.numel() for p in transformer.parameters())
    >>> config = match_parameters("hope", target, width=64, heads=2)
    >>> abs(sum(p.numel() for p in LanguageModel(config).parameters()) / target - 1) < 0.01
    True
    """
    overrides.pop("hidden", None)

    def count(hidden: int) -> int:
        return parameter_count(configure(preset, size=size, hidden=hidden, **dict(overrides)))

    base, slope = count(1), count(2) - count(1)
    hidden = 1 + round((target - base) / slope)
    got = count(max(1, hidden))
    if hidden < 1 or abs(got / target - 1) > 0.01:
        raise ValueError(f"target: {preset!r} of this size cannot have {target} parameters: {got}")
    return configure(preset, size=size, hidden=hidden, **overrides)


def parameter_count(config: ModelConfig) -> int:
    """Parameters of a model, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in LanguageModel(config).parameters())
