"""Which MLP is which level: a stack of levels as a value, and its slots.

    layer_mod_levels    the MLP of chosen layer j is level j mod k
    split               in every chosen layer, level l has hidden units  l h / k ... (l + 1) h / k

A slot is a part of one matrix that belongs to one level: rows of the inputs, columns of the
outputs. Slots of levels in context are written; those across contexts are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from nestling.continuum import AcrossContexts, Backprop, ContinuumConfig, ContinuumLevel, InContext
from nestling.continuum.config import backprop_chunk, writes_by_loss
from nestling.hf.mlp_finder import BlockMLP
from nestling.models.config import decode, encode

Span = tuple[int, int]

CHUNK = 256
"""Tokens read at once where no level in context says it."""


@dataclass(frozen=True)
class Slot:
    """A part of a matrix that belongs to one level.

    Attributes:
        block: index of the block.
        level: index of the level, the fastest is 0.
        name: of the matrix in its block: ``last``, ``first`` or, of two, ``gate`` and ``up``.
        path: of the module in the model.
        rows: which inputs.
        columns: which outputs, one or two spans.
    """

    block: int
    level: int
    name: str
    path: str
    rows: Span
    columns: tuple[Span, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs and outputs."""
        return self.rows[1] - self.rows[0], sum(stop - start for start, stop in self.columns)


@runtime_checkable
class Plan(Protocol):
    """Which part of which MLP is which level."""

    def spans(self, mlp: BlockMLP, turn: int, levels: int) -> list[tuple[int, Span]]:
        """Levels of one MLP and their hidden units; ``turn`` counts the chosen layers."""
        ...

    def check(self, mlps: Sequence[BlockMLP], levels: int) -> None:
        """Refuse what leaves a level without weights."""
        ...


@dataclass(frozen=True)
class LayerModLevels:
    """The whole MLP of the j-th chosen layer is level ``j mod k``.

    >>> from nestling.hf.mlp_finder import Matrix
    >>> LayerModLevels().spans(BlockMLP(0, (), Matrix("down", 8, 4)), 3, 2)
    [(1, (0, 8))]
    """

    def spans(self, mlp: BlockMLP, turn: int, levels: int) -> list[tuple[int, Span]]:
        """One level, all hidden units."""
        return [(turn % levels, (0, mlp.hidden))]

    def check(self, mlps: Sequence[BlockMLP], levels: int) -> None:
        """Every level needs a layer."""
        if len(mlps) < levels:
            raise ValueError(
                f"levels: {levels} of them need as many layers, expected at most {len(mlps)} "
                "(plan='split' has all levels in each layer)"
            )


@dataclass(frozen=True)
class Split:
    """All levels in each chosen layer, its hidden units in equal shares, the fastest first.

    >>> from nestling.hf.mlp_finder import Matrix
    >>> Split().spans(BlockMLP(0, (), Matrix("down", 8, 4)), 3, 2)
    [(0, (0, 4)), (1, (4, 8))]
    """

    def spans(self, mlp: BlockMLP, turn: int, levels: int) -> list[tuple[int, Span]]:
        """Every level with its share."""
        ends = [mlp.hidden * level // levels for level in range(levels + 1)]
        return [(level, (ends[level], ends[level + 1])) for level in range(levels)]

    def check(self, mlps: Sequence[BlockMLP], levels: int) -> None:
        """Every level needs a hidden unit."""
        least = min(mlp.hidden for mlp in mlps)
        if least < levels:
            raise ValueError(f"levels: {levels} of them cannot share {least} hidden units")


PLANS: dict[str, Plan] = {"layer_mod_levels": LayerModLevels(), "split": Split()}
"""By name, for the command line."""


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """A stack of levels on a model.

    Attributes:
        levels: fastest first; in context with errors of the loss, or across contexts.
        plan: which MLP is which level.
        layers: indices of the layers that are stacked; ``None``: all.
        matrices: of an MLP in context ``"last"`` is written, or ``"every"`` one.
        rank: of what is written in context; ``None``: full matrices.
        window: most tokens that a chunk finds in the cache of keys and values; ``None``: all.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> from nestling.continuum import in_context
    >>> StackConfig(levels=in_context(64, 512, source=Backprop())).chunk
    64
    """

    levels: tuple[ContinuumLevel, ...]
    plan: Plan = LayerModLevels()
    layers: tuple[int, ...] | None = None
    matrices: str = "last"
    rank: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels: expected at least one, got none")
        ContinuumConfig(levels=self.levels)  # values of the right type, the fastest first
        for level in self.levels:
            _check_level(level, self)
        if self.matrices not in ("last", "every"):
            raise ValueError(f"matrices: expected 'last' or 'every', got {self.matrices!r}")
        for name in ("rank", "window"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: expected a whole number >= 1 or None, got {value!r}")

    @property
    def chunk(self) -> int:
        """Most tokens through which an error flows."""
        return backprop_chunk(self.levels) or CHUNK

    @property
    def second_order(self) -> bool:
        """Whether writes are differentiated."""
        sources = [level.regime.source for level in self.levels
                   if isinstance(level.regime, InContext) and writes_by_loss(level)]  # fmt: skip
        return any(isinstance(one, Backprop) and one.order == 2 for one in sources)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = {type(plan): name for name, plan in PLANS.items()}
        return {
            "levels": encode(self.levels),
            "plan": names[type(self.plan)],
            "layers": None if self.layers is None else list(self.layers),
            "matrices": self.matrices,
            "rank": self.rank,
            "window": self.window,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StackConfig:
        """Read what :meth:`to_dict` wrote.

        Raises:
            ValueError: naming what is missing, unknown or does not fit.
        """
        known = ["layers", "levels", "matrices", "plan", "rank", "window"]
        if sorted(values) != known:
            raise ValueError(f"stack: expected the fields {known}, got {sorted(values)}")
        if values["plan"] not in PLANS:
            raise ValueError(f"plan: expected one of {list(PLANS)}, got {values['plan']!r}")
        layers = values["layers"]
        rest = {name: values[name] for name in ("matrices", "rank", "window")}
        levels = decode(values["levels"])
        if not isinstance(levels, tuple):
            raise ValueError(f"levels: expected a list, got {values['levels']!r}")
        return cls(levels=levels, plan=PLANS[values["plan"]],
                   layers=None if layers is None else tuple(layers), **rest)  # fmt: skip


def chosen(mlps: Sequence[BlockMLP], config: StackConfig) -> list[BlockMLP]:
    """The MLPs of the chosen layers, in the order of the layers.

    Raises:
        ValueError: if a layer is not there or comes twice, or a level would have no weights.
    """
    layers = range(len(mlps)) if config.layers is None else config.layers
    fits = all(type(index) is int and 0 <= index < len(mlps) for index in layers)
    if not layers or not fits or len(set(layers)) != len(layers):
        raise ValueError(f"layers: expected indices from 0 to {len(mlps) - 1}, got {layers}")
    found = [mlps[index] for index in sorted(layers)]
    config.plan.check(found, len(config.levels))
    return found


def slots_of(mlps: Sequence[BlockMLP], config: StackConfig) -> tuple[Slot, ...]:
    """Every slot that is written in context."""
    found: list[Slot] = []
    for turn, mlp in enumerate(chosen(mlps, config)):
        for level, span in config.plan.spans(mlp, turn, len(config.levels)):
            if config.levels[level].in_context:
                found += _slots(mlp, level, span, every=config.matrices == "every")
    return tuple(found)


def across_contexts(mlps: Sequence[BlockMLP], config: StackConfig) -> dict[str, int]:
    """Path of every module that moves across contexts, and its level.

    Raises:
        ValueError: if levels share a matrix: a parameter moves as a whole.
    """
    found: dict[str, int] = {}
    for turn, mlp in enumerate(chosen(mlps, config)):
        spans = config.plan.spans(mlp, turn, len(config.levels))
        for level, _ in spans:
            if config.levels[level].in_context:
                continue
            if len(spans) > 1:
                raise ValueError(
                    "plan: levels across contexts are parameters, which move as a whole; expected "
                    "'layer_mod_levels', or all levels in context"
                )
            found |= {matrix.path: level for matrix in (*mlp.first, mlp.last)}
    return found


def _slots(mlp: BlockMLP, level: int, span: Span, *, every: bool) -> list[Slot]:
    start, stop = span
    last = Slot(mlp.index, level, "last", mlp.last.path, span, ((0, mlp.last.outputs),))
    if not every:
        return [last]
    names = ("gate", "up") if len(mlp.first) == 2 else ("first",)
    columns: tuple[Span, ...] = (span,)
    if mlp.fused:
        columns = (span, (mlp.hidden + start, mlp.hidden + stop))
    return [
        Slot(mlp.index, level, name, matrix.path, (0, matrix.inputs), columns)
        for name, matrix in zip(names, mlp.first, strict=True)
    ] + [last]


def _check_level(level: ContinuumLevel, config: StackConfig) -> None:
    if level.hidden is not None:
        raise ValueError("levels: a hidden size is the model's own here, expected None")
    if isinstance(level.regime, AcrossContexts):
        return
    if not isinstance(level.regime.source, Backprop):
        raise ValueError(
            "source: expected Backprop, since no projection for a target was ever learned, "
            f"got {level.regime.source!r}"
        )
    if config.rank is None:
        return
    if level.regime.error_rule.moments:
        rule = type(level.regime.error_rule).__name__
        raise ValueError(
            f"rank: {rule} remembers a moment for every weight: expected a rule without, "
            "GradientDescent or DeltaGradientDescent"
        )
    if level.regime.source.order == 2:
        raise ValueError("rank: the best approximation has no derivative where it is not unique: "
                         "expected full writes with Backprop(order=2)")  # fmt: skip
