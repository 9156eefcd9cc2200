"""What a model is, as one frozen value that can be written to JSON and read back."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from nestling import continuum as _continuum
from nestling import memory as _memory
from nestling.continuum.config import writes_by_loss
from nestling.layers import AttentionConfig, ContinuumConfig, SelfModifyingConfig
from nestling.layers.block import MixerConfig

# The only types that a saved configuration may name.
_TYPES = {
    cls.__name__: cls
    for cls in (
        AttentionConfig,
        ContinuumConfig,
        SelfModifyingConfig,
        _memory.LearningRule,
        _memory.DotProduct,
        _memory.L2,
        _memory.Lp,
        _memory.Huber,
        _memory.Keep,
        _memory.Decay,
        _memory.DecayToInitial,
        _memory.Delta,
        _memory.Momentum,
        _memory.NewtonSchulz,
        _continuum.ContinuumLevel,
        _continuum.AcrossContexts,
        _continuum.InContext,
        _continuum.Local,
        _continuum.Backprop,
        _continuum.Sequential,
        _continuum.Nested,
        _continuum.Independent,
        _continuum.GradientDescent,
        _continuum.HeavyBall,
        _continuum.Adam,
        _continuum.DeltaGradientDescent,
    )
}

_LATER = {
    "ContinuumConfig": ("levels", "variant"),
    "InContext": ("kept",),
    "LearningRule": ("hidden_step",),
}
"""Fields that came later: not written while at their default, so that a model saved before them
keeps its digest, and with it its sessions."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A language model: blocks of one mixer and one continuum of levels.

    Attributes:
        preset: the name that it was built from, for tables.
        vocab_size: token ids are below it; 256 for bytes.
        width: D of the residual stream.
        heads: H, a divisor of the width.
        layers: number of blocks.
        mixer: the sequence layer.
        continuum: the levels behind it.

    Raises:
        ValueError: naming the first argument that does not fit.

    >>> config = ModelConfig(width=64, heads=2)
    >>> ModelConfig.from_dict(config.to_dict()) == config
    True
    """

    preset: str = "custom"
    vocab_size: int = 256
    width: int = 128
    heads: int = 4
    layers: int = 2
    mixer: MixerConfig = field(default_factory=SelfModifyingConfig)
    continuum: ContinuumConfig = field(default_factory=ContinuumConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "heads", "layers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")
        if self.width % self.heads:
            raise ValueError(f"heads: expected a divisor of width {self.width}, got {self.heads}")
        attends = isinstance(self.mixer, AttentionConfig) and not self.mixer.conv_size
        if self.second_order and self.layers > 1 and not attends:
            raise ValueError(
                "continuum: Backprop(order=2) differentiates twice through the blocks behind a "
                "level, which attention without a convolution allows and this mixer does not: "
                "expected order=1, one layer, or such a mixer"
            )

    @property
    def learns_from_loss(self) -> bool:
        """Whether a level is written by the next-token loss: by ``observe`` and not by reading."""
        return any(map(writes_by_loss, self.continuum.chain))

    @property
    def second_order(self) -> bool:
        """Whether a write by the next-token loss is differentiated."""
        sources = [
            level.regime.source
            for level in self.continuum.chain
            if isinstance(level.regime, _continuum.InContext) and writes_by_loss(level)
        ]
        return any(isinstance(one, _continuum.Backprop) and one.order == 2 for one in sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; nested parts carry their type's name under ``"is"``."""
        return {f.name: encode(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: for an unknown field or type, naming it.
        """
        return _build(cls, values)


def encode(value: Any) -> Any:
    """Plain JSON values of a part of a configuration, with the names of its types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        later = _LATER.get(type(value).__name__, ())
        fields = {
            f.name: encode(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.name in later and getattr(value, f.name) == f.default)
        }
        return {"is": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def decode(value: Any) -> Any:
    """What :func:`encode` wrote.

    Raises:
        ValueError: for an unknown field or type, naming it.
    """
    if isinstance(value, dict):
        kind = value.get("is")
        if kind not in _TYPES:
            raise ValueError(f"config: unknown type {kind!r}, expected one of {sorted(_TYPES)}")
        return _build(_TYPES[kind], {k: v for k, v in value.items() if k != "is"})
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    return value


def _build(cls: type, values: dict[str, Any]) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"config: expected an object for {cls.__name__}, got {values!r}")
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = set(values) - known
    if unknown:
        raise ValueError(f"config: {cls.__name__} has no field {sorted(unknown)}")
    return cls(**{name: decode(value) for name, value in values.items()})
