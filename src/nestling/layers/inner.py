"""What the layers with inner memories share: gates, learned initial states, liveness."""

from __future__ import annotations

import math

import torch
from torch import nn

from nestling.memory import LearningRule, MemoryState
from nestling.memory.state import Weights
from nestling.shapes import Float, Tensor


class Gate(nn.Module):
    """One scalar per head and token in (0, 1): ``sigmoid(r . x + b)``, starting at ``start``.

    Reading R4: without the bias every gate would start at 0.5, which wipes a memory in a few
    tokens.
    """

    def __init__(self, heads: int, size: int, start: float):
        super().__init__()
        self.read_out = nn.Parameter(torch.randn(heads, size) * 0.1 / math.sqrt(size))
        self.bias = nn.Parameter(torch.full((heads,), math.log(start / (1 - start))))

    def forward(self, x: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H T"]:
        """The gate of every token."""
        logit = (x @ self.read_out[..., None].to(x.dtype)).squeeze(-1)
        return torch.sigmoid(logit + self.bias[:, None].to(x.dtype))


def initial_weights(shapes: dict[str, tuple[int, int]], rows: tuple[int, ...]) -> nn.ParameterDict:
    """Learned initial memories: what the outer loop writes and the inner one starts from."""
    return nn.ParameterDict(
        {name: nn.Parameter(torch.randn(*rows, *io) * io[0] ** -0.5) for name, io in shapes.items()}
    )


def initial_memory(initial: nn.ParameterDict, batch: int, rule: LearningRule) -> MemoryState:
    """One copy of the initial memory per row, in float32 at least; gradients reach it."""
    weights = {}
    for name, value in initial.items():
        full = value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
        weights[name] = full.expand(batch, *value.shape)
    momentum = {name: torch.zeros_like(W) for name, W in weights.items()}
    return MemoryState(
        weights=weights,
        momentum=momentum if rule.has_momentum_state else {},
        anchor=weights,
        initial=weights if rule.retention.toward_initial else None,
        position=torch.zeros(batch, dtype=torch.long),
    )


def stacked(generators: MemoryState, memory: MemoryState) -> MemoryState:
    """Append ``(B, H, ...)`` to the stack ``(B, N, H, ...)``; they share clock and shapes.

    Memories come first in memory, as ``engine/two_layer.py`` wants them.
    """

    def cat(group: str) -> Weights | None:
        ours, other = getattr(generators, group), getattr(memory, group)
        if not ours:
            return ours
        return {
            name: torch.cat([W.transpose(0, 1), other[name][None]]).transpose(0, 1)
            for name, W in ours.items()
        }

    groups = {group: cat(group) for group in ("weights", "momentum", "anchor", "initial")}
    return MemoryState(position=generators.position, **groups)  # type: ignore[arg-type]


def unstacked(joint: MemoryState) -> tuple[MemoryState, MemoryState]:
    """Undo :func:`stacked`: the stack without its last memory, and that memory."""
    parts = []
    for last in (False, True):
        groups = {}
        for group in ("weights", "momentum", "anchor", "initial"):
            found = getattr(joint, group)
            if found is not None:
                found = {n: W[:, -1] if last else W[:, :-1] for n, W in found.items()}
            groups[group] = found
        parts.append(MemoryState(position=joint.position, **groups))
    return parts[0], parts[1]


def moved(before: MemoryState, after: MemoryState, index: int | None = None) -> float:
    """``|M_after - M_before| / |M_before|``, of one memory of a stack where ``index`` is given."""
    change, size = 0.0, 0.0
    for name, old in before.weights.items():
        both = torch.stack([old.detach(), after.weights[name].detach()])
        if index is not None:
            both = both[:, :, index]
        change += float((both[1] - both[0]).square().sum())
        size += float(both[0].square().sum())
    return (change / max(size, 1e-30)) ** 0.5
