"""Random problems for the engines, and how their answers are held against the references.

A problem is a memory, a rule, a chunk size and named float64 tensors: ``k v q eta alpha beta``,
``weights.w``, ``momentum.w``, ``initial.w``. Answers are named tensors as well: ``reads``,
``weights.w``, ``momentum.w``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nestling.engine import scan
from nestling.memory import (
    LearningRule,
    LinearMemory,
    MemoryState,
    MLPMemory,
    Tokens,
)

from . import oracle, port

ENGINES = ("recurrent", "chunked")
TOKENS = ("k", "v", "q", "eta", "alpha", "beta")
GROUPS = ("weights", "momentum", "initial")
SIZES = {
    "linear": {"w": (3, 4)},
    "square": {"w": (3, 3)},
    "mlp": {"w_in": (4, 5), "w_out": (5, 4)},
    "deep_mlp": {"w_in": (4, 5), "w_hidden_1": (5, 5), "w_out": (5, 4)},
}


def memory_named(name: str):
    """The memory under test; ``square`` is a linear one with K = V, for self-made values."""
    if name in ("linear", "square"):
        return LinearMemory()
    return MLPMemory(hidden=5, depth=len(SIZES[name]))


@dataclass(frozen=True)
class Problem:
    """What an engine is asked, as plain named tensors."""

    memory: str
    rule: LearningRule
    chunk_size: int
    tensors: dict[str, Tensor]
    mask: Tensor | None = None

    @property
    def length(self) -> int:
        """T, masked tokens included."""
        return self.tensors["k"].shape[2]

    def map(self, function) -> Problem:
        """The same problem with ``function(name, tensor)`` in the place of every tensor."""
        return replace(self, tensors={n: function(n, x) for n, x in self.tensors.items()})

    def where(self, **tensors: Tensor) -> Problem:
        """The same problem with some tensors exchanged."""
        return replace(self, tensors={**self.tensors, **tensors})

    def group(self, name: str) -> dict[str, Tensor]:
        """One of the dicts of a state."""
        start = f"{name}."
        return {n.removeprefix(start): x for n, x in self.tensors.items() if n.startswith(start)}

    def nested(self) -> dict:
        """The arguments of both references."""
        tokens = {n: self.tensors[n] for n in TOKENS}
        if self.mask is not None:
            tokens["mask"] = self.mask
        groups = {n: self.group(n) for n in GROUPS}
        return {"rule": self.rule, "tokens": tokens, "chunk_size": self.chunk_size, **groups}

    def state(self) -> MemoryState:
        """Where the first scan starts."""
        return MemoryState(
            weights=self.group("weights"),
            momentum=self.group("momentum"),
            initial=self.group("initial") or None,
        )

    def tokens(self, part: slice = slice(None)) -> Tokens:
        """Some of the tokens."""
        parts = {n: self.tensors[n][:, :, part] for n in TOKENS if n in self.tensors}
        return Tokens(**parts, mask=None if self.mask is None else self.mask[:, part])


def random_problem(
    memory: str,
    rule: LearningRule,
    *,
    length: int = 13,
    chunk_size: int = 5,
    batch: int = 2,
    heads: int = 2,
    explicit_initial: bool = False,
) -> Problem:
    """A problem that depends on its description only: non-zero state, bounded keys."""
    text = repr((memory, rule, length, chunk_size, batch, heads)).replace(", hidden_step=1.0", "")
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    def bounded(size):
        x = normal(batch, heads, length, size)
        return x / x.norm(dim=-1, keepdim=True) * uniform(0.7, 1.0, batch, heads, length, 1)

    sizes = SIZES[memory]
    inner, outer = next(iter(sizes.values()))[0], list(sizes.values())[-1][1]
    tensors = {"k": bounded(inner), "v": bounded(outer), "q": bounded(inner)}
    for name, low, high in (("eta", 0.1, 0.9), ("alpha", 0.6, 1.0), ("beta", 0.3, 0.95)):
        tensors[name] = uniform(low, high, batch, heads, length)
    groups = {"weights": 0.7, "momentum": 0.3} if rule.momentum else {"weights": 0.7}
    if explicit_initial:
        groups["initial"] = 0.7
    for group, scale in groups.items():
        for name, (i, o) in sizes.items():
            tensors[f"{group}.{name}"] = scale * normal(batch, heads, i, o)
    return Problem(memory, rule, chunk_size, tensors)


# ---------------------------------------------------------------- answers


def answers(reads: Tensor | None, state: MemoryState, rule: LearningRule) -> dict[str, Tensor]:
    """What an engine returned, by name; a momentum only where the rule carries one on."""
    found = {} if reads is None else {"reads": reads}
    found |= {f"weights.{n}": x for n, x in state.weights.items()}
    if rule.momentum is not None:
        found |= {f"momentum.{n}": x for n, x in state.momentum.items()}
    return found


def engine_state(problem: Problem, engine: str | Sequence[str], cuts: Sequence[int] = ()):
    """Reads and state after scanning the pieces between ``cuts``, with one engine per piece."""
    memory, state, reads = memory_named(problem.memory), problem.state(), []
    edges = [0, *cuts, problem.length]
    engines = [engine] * (len(edges) - 1) if isinstance(engine, str) else list(engine)
    for start, stop, name in zip(edges, edges[1:], engines, strict=False):
        y, state = scan(
            memory,
            problem.rule,
            state,
            problem.tokens(slice(start, stop)),
            chunk_size=problem.chunk_size,
            engine=name,
        )
        assert y is not None
        reads.append(y)
    return torch.cat(reads, 2), state


def engine_answers(problem: Problem, engine: str | Sequence[str], cuts: Sequence[int] = ()):
    """The engine's answers by name, reads of masked tokens set to zero as in the references."""
    reads, state = engine_state(problem, engine, cuts)
    if problem.mask is not None:
        reads = torch.where(problem.mask[:, None, :, None], reads, 0.0)
    return answers(reads, state, problem.rule)


def oracle_answers(problem: Problem) -> dict[str, Tensor]:
    """The NumPy loop's answers."""
    result = oracle.run(**_as_arrays(problem)).flat()
    return {name: torch.from_numpy(value) for name, value in result.items()}


def oracle_derivative(problem: Problem, direction: Problem) -> dict[str, Tensor]:
    """The NumPy loop's derivative of every answer along ``direction``."""
    moved = oracle.derivative_along(_as_arrays(problem), _as_arrays(direction))
    return {name: torch.from_numpy(value) for name, value in moved.items()}


def _as_arrays(problem: Problem) -> dict:
    return {
        n: {m: x.detach().numpy() for m, x in value.items()} if isinstance(value, dict) else value
        for n, value in problem.nested().items()
    }


def cotangents(problem: Problem) -> dict[str, Tensor]:
    """Fixed random weights of every answer in the outer loss."""
    generator = torch.Generator().manual_seed(5)
    sizes = list(SIZES[problem.memory].items())
    k = problem.tensors["k"]
    shapes = {"reads": (*k.shape[:3], sizes[-1][1][1])}
    shapes |= {f"weights.{name}": (*k.shape[:2], *size) for name, size in sizes}
    if problem.rule.momentum is not None:
        shapes |= {f"momentum.{name}": (*k.shape[:2], *size) for name, size in sizes}
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {n: x.to(k.dtype) for n, x in drawn.items()}


def value_and_gradients(problem: Problem, run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Answers of ``run(problem)`` and the gradient of their weighted sum at every tensor."""
    leaves = problem.map(lambda _, x: x.detach().clone().requires_grad_())
    results = run(leaves)
    grads = port.gradients_of(results, cotangents(problem), leaves.tensors)
    return {n: x.detach() for n, x in results.items()}, grads


def port_answers(problem: Problem) -> dict[str, Tensor]:
    """The autograd reference's answers, differentiable."""
    return port.run(**problem.nested())


def assert_same(found, expected, *, rtol: float = 1e-9, what: str = "") -> None:
    """Same names, and every number within ``rtol``, with a floor of 1 % of the largest."""
    assert set(found) == set(expected), f"{what}: {sorted(found)} != {sorted(expected)}"
    for name, right in expected.items():
        left = found[name]
        assert left.shape == right.shape, f"{what} {name}: {left.shape} != {right.shape}"
        size = float(right.abs().max()) if right.numel() else 0.0
        torch.testing.assert_close(
            left, right, rtol=rtol, atol=0.01 * rtol * size + 1e-14,
            msg=lambda text, name=name: f"{what} {name}: {text}",
        )  # fmt: skip
