"""The non-parametric memory: softmax attention, global or in a sliding window (NL Eq. 62-63).

    M(q) = sum_i softmax_i(q . k_i / sqrt(K)) v_i

It is the Nadaraya-Watson solution of the L2 problem over all pairs seen: instead of compressing
them into weights it keeps them, so a write is an append and the state grows with the text (or
stays as long as the window).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from nestling.memory.state import MemoryState, Tokens
from nestling.shapes import Float, Tensor


@dataclass(frozen=True)
class SoftmaxMemory:
    """Causal softmax attention as a memory.

    The state's weights are the pairs kept, ``{"k": (B, H, S, K), "v": (B, H, S, V)}``, left
    aligned, with ``position`` holding how many of the S are real in each row.

    Args:
        window: how many of the last tokens a query sees, itself included; ``None`` is all.

    Raises:
        ValueError: if ``window`` is below 1.

    >>> SoftmaxMemory(window=2).name
    'softmax, window 2'
    """

    window: int | None = None

    parametric = False

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 1:
            raise ValueError(f"window: expected at least 1 or None, got {self.window}")

    @property
    def name(self) -> str:
        """For tables."""
        return "softmax" if self.window is None else f"softmax, window {self.window}"

    def read(
        self,
        k: Float[Tensor, "... S K"],
        v: Float[Tensor, "... S V"],
        q: Float[Tensor, "... K"],
        seen: Tensor,
    ) -> Float[Tensor, "... V"]:
        """The definition, for one query over the pairs that it has ``seen``."""
        scores = (k @ q[..., :, None]).squeeze(-1) / k.shape[-1] ** 0.5
        share = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        return (share[..., None, :] @ v).squeeze(-2)

    def attend(self, state: MemoryState, tokens: Tokens) -> tuple[Tensor | None, MemoryState]:
        """Append ``tokens`` and let every query read the pairs up to itself."""
        old, position = self._kept(state, tokens)
        T, S = tokens.length, old["k"].shape[-2]
        k = torch.cat([old["k"], tokens.k], dim=-2)
        v = torch.cat([old["v"], tokens.v], dim=-2)
        uniform = tokens.mask is None and bool((position == S).all())
        y = None
        if tokens.q is not None:
            if uniform and S == 0 and (self.window is None or self.window >= T):
                y = F.scaled_dot_product_attention(tokens.q, k, v, is_causal=True)
            else:
                seen = self.visible(position, S, tokens)[:, None].to(k.device)
                y = F.scaled_dot_product_attention(tokens.q, k, v, attn_mask=seen)
        return y, self._trim(k, v, position, S, tokens.mask, uniform)

    def visible(self, position: Tensor, S: int, tokens: Tokens) -> Tensor:
        """Which of the S kept and T new pairs each new query sees, ``(B, T, S + T)``."""
        T = tokens.length
        valid = self._valid(position, S, T, tokens.mask)
        order = valid.long().cumsum(-1)
        index = torch.arange(S + T)
        seen = valid[:, None, :] & (index[None, None, :] <= index[None, S:, None])
        if self.window is not None:
            seen = seen & (order[:, S:, None] - order[:, None, :] < self.window)
        # A padded query would see nothing, and a softmax over nothing is not a number.
        return seen | (index[None, None, :] == index[None, S:, None])

    def _kept(self, state: MemoryState, tokens: Tokens) -> tuple[dict[str, Tensor], Tensor]:
        if state.weights:
            k, v = state.weights["k"], state.weights["v"]
        else:
            k, v = tokens.k[..., :0, :], tokens.v[..., :0, :]
        position = state.position
        if position is None:
            position = torch.full((tokens.k.shape[0],), k.shape[-2])
        return {"k": k, "v": v}, position

    @staticmethod
    def _valid(position: Tensor, S: int, T: int, mask: Tensor | None) -> Tensor:
        stored = torch.arange(S)[None, :] < position[:, None]
        new = torch.ones(position.shape[0], T, dtype=torch.bool) if mask is None else mask.cpu()
        return torch.cat([stored, new], dim=-1)

    def _trim(self, k, v, position, S, mask, uniform) -> MemoryState:
        """Left-align the valid pairs and drop those that no later query can see."""
        keep = None if self.window is None else self.window - 1
        T = k.shape[-2] - S
        if uniform:
            first = 0 if keep is None else max(0, S + T - keep)
            pairs = {"k": k[..., first:, :], "v": v[..., first:, :]}
            return MemoryState(weights=pairs, position=position + T - first)
        valid = self._valid(position, S, T, mask)
        if keep is not None:
            behind = valid.long().flip(-1).cumsum(-1).flip(-1)
            valid = valid & (behind <= keep)
        count = valid.sum(-1)
        order = valid.long().argsort(dim=-1, descending=True, stable=True)
        order = order[:, : int(count.max())].to(k.device)

        def gather(x: Tensor) -> Tensor:
            index = order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
            return x.gather(-2, index)

        return MemoryState(weights={"k": gather(k), "v": gather(v)}, position=count)
