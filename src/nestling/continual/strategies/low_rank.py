"""Low-rank pairs: the weights are held, what a phase changes fits into a few directions.

    y = x (W + s A B)               only A (in, r) and B (r, out) move;  A ~ N(0, 1/in),  B = 0
    W <- W + s A B,  a new pair     when an experience ends, or a period of targets is over

Hu et al. 2021 (LoRA); with the pair merged and begun anew, Lialin et al. 2023 (ReLoRA). As levels:
the pair is the fast one, and at the end of its period it is written into the slow one, which is
held until then. It limits how much a phase can change, and does nothing else about what was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from nestling.continual.protocol import Batch
from nestling.continual.strategies.base import GradientLearner, cross_entropy
from nestling.layers.continuum import MemoryLevel
from nestling.optim import adamw
from nestling.optim.levelwise import Make
from nestling.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Where pairs stand, how large they are, and what becomes of them.

    Attributes:
        rank: r.
        scale: s.
        maps: paths of the ``torch.nn.Linear`` that get one; ``None``: those of
            :func:`linear_maps` which are not trained as a whole.
        trained: parameters, or modules with all of theirs, that move as a whole beside the pairs:
            a new head, for example. All others are held.
        ended: what a pair becomes when its time is over: ``"merged"`` into the weights, or
            ``"kept"`` beside them. The model computes the same; what is kept can be told apart.
        period: targets seen after which a pair's time is over, also where nobody tells of an
            experience; ``None``: only when an experience ends.

    Raises:
        ValueError: if a number is out of range, or ``ended`` is another word.
    """

    rank: int = 8
    scale: float = 1.0
    maps: Sequence[str] | None = None
    trained: Sequence[str] = ()
    ended: Literal["merged", "kept"] = "merged"
    period: int | None = None

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank: expected at least 1, got {self.rank}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale: expected a positive number, got {self.scale}")
        if self.ended not in ("merged", "kept"):
            raise ValueError(f"ended: expected 'merged' or 'kept', got {self.ended!r}")
        if self.period is not None and self.period < 1:
            raise ValueError(f"period: expected at least 1, got {self.period}")


def linear_maps(model: nn.Module) -> list[str]:
    """Paths of the maps that a low-rank pair may stand beside.

    Every ``torch.nn.Linear``, but not one that shares its weight with another module (a head that
    is also the embedding), and not the MLP of a level in context, whose weights are no map that is
    applied but the state in which the level starts.

    >>> linear_maps(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['0', '2']
    """
    owners: dict[int, int] = {}
    for part in model.modules():
        for weight in part.parameters(recurse=False):
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    states = tuple(
        f"{name}.mlp."
        for name, part in model.named_modules()
        if isinstance(part, MemoryLevel) and part.spec.in_context
    )
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear)
        and owners.get(id(part.weight), 1) == 1
        and not name.startswith(states)
    ]


class Pair(nn.Module):
    """A low-rank change of one weight, and those before it that were kept.

    >>> pair = Pair(torch.zeros(3, 2), rank=1, scale=2.0, generator=torch.Generator())
    >>> pair(torch.ones(3, 2)).unique()
    tensor([1.], grad_fn=<Unique2Backward0>)
    """

    def __init__(
        self, weight: Tensor, *, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = scale
        self.A = nn.Parameter(weight.new_zeros(inputs, rank))
        self.B = nn.Parameter(weight.new_zeros(rank, outputs))
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.begin(generator)

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The weight with all changes, in the layout of ``torch.nn.Linear``."""
        for A, B in [*self.kept, (self.A, self.B)]:
            weight = weight + self.scale * (A @ B).T
        return weight

    @torch.no_grad()
    def begin(self, generator: torch.Generator) -> None:
        """Become a new pair, which changes nothing yet."""
        drawn = torch.randn(self.A.shape, generator=generator) / math.sqrt(len(self.A))
        self.A.copy_(drawn)
        self.B.zero_()


class LowRank(GradientLearner):
    """Plain training of low-rank pairs, one after the other, on weights that are held.

    The model is changed in place: while the learner lives, the weight of each map is computed from
    the held one and its pairs (``torch.nn.utils.parametrize``). :meth:`merged` gives a plain copy.

    Args:
        model: as for every strategy, like ``make`` and ``**options``. The memory of the optimizer
            for a pair ends with the pair; ``keep_moments`` is about what is trained beside it.
        pairs: where they stand, their size, and what becomes of them.
        seed: of A.

    Raises:
        ValueError: if a path in ``pairs`` leads nowhere or to another kind of module, or there is
            no map at all.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
    >>> learner = LowRank(model, pairs=Pairs(rank=1, trained=("2",)))
    >>> [name for name, p in model.named_parameters() if p.requires_grad]
    ['0.parametrizations.weight.0.A', '0.parametrizations.weight.0.B', '2.weight', '2.bias']
    """

    def __init__(
        self,
        model: nn.Module,
        make: Make = adamw,
        *,
        pairs: Pairs | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.config = config = pairs or Pairs()
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = 0
        trained = _parameters(model, config.trained)
        maps = _maps(model, config, trained)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        self.pairs: dict[str, Pair] = {}
        for name in maps:
            part = model.get_submodule(name)
            self.pairs[name] = Pair(
                cast(Tensor, part.weight), rank=config.rank, scale=config.scale,
                generator=self._generator,
            )  # fmt: skip
            parametrize.register_parametrization(part, "weight", self.pairs[name])
        super().__init__(model, make, **options)

    def observe(self, batch: Batch) -> float:
        """Learn from a batch; its loss before, in nats."""
        loss = cross_entropy(self.scores(batch.inputs), batch.targets)
        self.step(loss, count=batch.count)
        before, self._seen = self._seen, self._seen + batch.count
        period = self.config.period
        if period is not None and self._seen // period > before // period:
            self.renew()
        return loss.item()

    def end_experience(self, items: Batch) -> None:
        """End the pairs, and begin new ones."""
        self.renew()
        super().end_experience(items)

    @torch.no_grad()
    def renew(self) -> None:
        """End the pairs, and begin new ones: the model computes what it did."""
        for name, pair in self.pairs.items():
            if self.config.ended == "kept":
                pair.kept = [*pair.kept, (pair.A.detach().clone(), pair.B.detach().clone())]
            else:
                held = cast(Any, self.model.get_submodule(name)).parametrizations.weight.original
                held.add_((pair.A @ pair.B).T, alpha=pair.scale)
            pair.begin(self._generator)
            for parameter in (pair.A, pair.B):
                parameter.grad = None
                for optimizer in self.optimizer.optimizers:
                    optimizer.state.pop(parameter, None)

    def merged(self) -> nn.Module:
        """A plain copy of the model with all pairs in its weights."""
        model = copy.deepcopy(self.model)
        for name in self.pairs:
            _plain(model.get_submodule(name))
        return model

    def memory(self) -> dict[str, Any]:
        """The pairs that were kept, and what the next ones are drawn from."""
        return {
            "kept": {name: [list(kept) for kept in pair.kept] for name, pair in self.pairs.items()},
            "seen": self._seen,
            "generator": self._generator.get_state(),
        }

    def load_memory(self, memory: Mapping[str, Any]) -> None:
        """Take what :meth:`memory` gave."""
        for name, pair in self.pairs.items():
            device = pair.A.device
            kept = [(A.clone().to(device), B.clone().to(device)) for A, B in memory["kept"][name]]
            pair.kept = kept
        self._seen = int(memory["seen"])
        self._generator.set_state(memory["generator"].cpu())


@torch.no_grad()
def _plain(part: nn.Module) -> None:
    """Make a map with pairs one without: its weight is what they made of it."""
    # Not torch's remove_parametrizations: it takes the weight from the class, which copies share.
    weight, others = cast(Tensor, part.weight).clone(), dict(part._parameters)
    part.__class__ = parametrize.type_before_parametrizations(part)
    del part.parametrizations
    part._parameters.clear()
    part.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    part._parameters.update(others)


def _parameters(model: nn.Module, paths: Sequence[str]) -> set[str]:
    """Names of the parameters at or below some paths."""
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for path in paths:
        below = {name for name in names if name == path or name.startswith(f"{path}.")}
        if not below:
            raise ValueError(f"trained: the model has no parameter at or below {path!r}")
        found |= below
    return found


def _maps(model: nn.Module, config: Pairs, trained: set[str]) -> list[str]:
    if config.maps is None:
        maps = [name for name in linear_maps(model) if _weight(name) not in trained]
    else:
        maps = list(config.maps)
        known = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        for name in maps:
            if name not in known:
                raise ValueError(f"maps: the model has no torch.nn.Linear {name!r}")
            if _weight(name) in trained:
                raise ValueError(f"maps: the weight of {name!r} is trained as a whole")
    if not maps:
        raise ValueError(f"maps: {type(model).__name__} has no linear map for a pair")
    return maps


def _weight(name: str) -> str:
    return f"{name}.weight" if name else "weight"
