"""Softmax attention as a sequence layer: the non-parametric memory with rotary positions.

y = softmax(q K^T / sqrt(d)) V        (NL Eq. 62-63), q and k rotated by their position (RoPE)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from nestling.layers.conv import ShortConvolution
from nestling.levels import Component, Level, Transfer, path, weights_of
from nestling.memory import MemoryState, SoftmaxMemory, Tokens
from nestling.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Softmax attention.

    Attributes:
        window: how many tokens a query sees; None is all of them.
        rope_base: slowest wavelength of the rotary positions; None for no positions.
        conv_size: taps of short convolutions on q, k and v; 0 for none (the usual Transformer).
    """

    window: int | None = None
    rope_base: float | None = 10_000.0
    conv_size: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionState:
    """Pairs kept so far, how many tokens went by, ``(B,)``, and the convolution's last inputs."""

    memory: MemoryState
    position: Tensor
    tail: Tensor


class Attention(nn.Module):
    """Multi-head causal softmax attention with an explicit state, ``(B, T, D) -> (B, T, D)``.

    Raises:
        ValueError: if ``heads`` does not divide ``width``.

    >>> y, state = Attention(8, 2)(torch.randn(1, 5, 8))
    >>> y.shape, state.memory.weights["k"].shape
    (torch.Size([1, 5, 8]), torch.Size([1, 2, 5, 4]))
    """

    def __init__(self, width: int, heads: int, config: AttentionConfig | None = None):
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"heads: expected a divisor of width {width}, got {heads}")
        self.config = config = config or AttentionConfig()
        self.heads, self.head_size = heads, width // heads
        self.memory = SoftmaxMemory(window=config.window)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.conv = ShortConvolution(3 * width, config.conv_size) if config.conv_size else None
        self.out = nn.Linear(width, width, bias=False)

    def initial_state(self, batch: int) -> AttentionState:
        """Nothing seen yet."""
        weight = self.out.weight
        none = weight.new_zeros(batch, self.heads, 0, self.head_size)
        tail = weight.new_zeros(batch, 0)
        return AttentionState(
            memory=MemoryState(
                weights={"k": none, "v": none}, position=torch.zeros(batch, dtype=torch.long)
            ),
            position=torch.zeros(batch, dtype=torch.long),
            tail=tail if self.conv is None else self.conv.initial_state(batch),
        )

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        state: AttentionState | None = None,
        lengths: Tensor | None = None,
        *,
        writes: Literal["on", "off"] = "on",
    ) -> tuple[Float[Tensor, "B T D"], AttentionState]:
        """Append T tokens and let each read all before it.

        With ``writes="off"`` they see each other, and the state comes back without them.
        """
        B, T, _ = x.shape
        state = state or self.initial_state(B)
        qkv, tail = self.qkv(x), state.tail
        if self.conv is not None:
            qkv, tail = self.conv(qkv, tail, lengths)
        q, k, v = qkv.unflatten(-1, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        if self.config.rope_base is not None:
            place = state.position[:, None] + torch.arange(T)
            q, k = (rotate(part, place, self.config.rope_base) for part in (q, k))
        mask = None
        if lengths is not None:
            mask = torch.arange(T)[None, :] < lengths.cpu()[:, None]
        memory = state.memory
        memory = MemoryState(
            weights={name: kept.to(k.dtype) for name, kept in memory.weights.items()},
            position=memory.position,
        )
        y, memory = self.memory.attend(memory, Tokens(q=q, k=k, v=v, mask=mask))
        assert y is not None
        y = self.out(y.transpose(1, 2).flatten(2))
        if writes == "off":
            return y, state
        moved = torch.full((B,), T) if lengths is None else lengths.cpu()
        return y, AttentionState(memory=memory, position=state.position + moved, tail=tail)

    def components(self, name: str = "") -> list[Component]:
        """The one memory of this layer and the weights around it, for the level table."""
        weights = weights_of(self, name, memory="projections q, k, v and output")
        memory = Component(
            name=path(name, "memory"),
            level=Level(1),
            memory=f"{self.memory.name} x {self.heads} heads",
            rule="append (exact solution of L2)",
            context_flow="tokens, projected keys and values",
            parameters=2 * self.heads * self.head_size,
            objective="L2(M(k_t), v_t), each key weighted by its similarity to the query",
            kind="non_parametric",
        )
        return [
            memory.linked(
                Transfer("generation", weights.name, memory.name),
                Transfer("non_parametric", memory.name, weights.name),
                Transfer("backpropagation", memory.name, weights.name),
            ),
            weights,
        ]

    def liveness(self, before: AttentionState, after: AttentionState) -> dict[str, float]:
        """Attention appends; it has no weights that could fail to move."""
        return {}


def rotate(x: Float[Tensor, "B H T K"], place: Tensor, base: float) -> Float[Tensor, "B H T K"]:
    """Rotary position embedding (Su et al. 2021), pairs taken from the two halves of a head.

    Args:
        x: queries or keys; an odd last feature stays as it is.
        place: ``(B, T)`` positions in tokens.
        base: slowest wavelength over 2 pi.
    """
    half = x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = place.to(torch.float64)[:, None, :, None] * frequency
    cos, sin = (f(angle).to(x.device, x.dtype) for f in (torch.cos, torch.sin))
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
