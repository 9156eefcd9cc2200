"""A language model of blocks, with its whole inner state as an argument and a return value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from nestling.layers.block import Block, BlockState
from nestling.layers.continuum import Activity
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying_config import Writes
from nestling.levels import Component, Level
from nestling.models.config import ModelConfig
from nestling.shapes import Float, Tensor


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """Inner state of every block; fixed in size unless a block attends to all tokens."""

    blocks: tuple[BlockState, ...]


class LanguageModel(nn.Module):
    """Token ids in, next-token logits and the new inner state out.

    A text may be fed in pieces cut anywhere: pass on the state. Nothing depends on
    ``module.training``: reading is writing, in training and after it.

    >>> from nestling.models import build
    >>> model = build("hope", width=16, heads=2, layers=1)
    >>> ids = torch.randint(256, (1, 12))
    >>> whole, _ = model(ids)
    >>> first, state = model(ids[:, :5])
    >>> second, _ = model(ids[:, 5:], state)
    >>> torch.allclose(whole, torch.cat([first, second], dim=1), atol=1e-4)
    True
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.mixer, config.continuum)
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width)

    def initial_state(self, batch: int) -> ModelState:
        """The state before the first token: the learned initial memories."""
        return ModelState(blocks=tuple(block.initial_state(batch) for block in self._blocks()))

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        writes: str = "on",
    ) -> tuple[Float[Tensor, "B T vocab"], ModelState]:
        """Predict the next token at every position, writing every memory on the way.

        Args:
            ids: token ids, ``(B, T)`` whole numbers.
            state: from the last call on the same text; None to start anew.
            mask: ``(B, T)`` bool, False at padding anywhere: padded tokens neither write nor move
                clocks, and their logits have no meaning.
            writes: ``"off"`` only reads: every token meets the memories as ``state`` holds them,
                and ``state`` comes back as it was. Attention and convolutions still see the other
                tokens of the call.

        Raises:
            ValueError: naming the argument.
        """
        self._check(ids, state, mask)
        if writes not in ("on", "off"):
            raise ValueError(f"writes: expected 'on' or 'off', got {writes!r}")
        order, lengths = None, None
        if mask is not None and not bool(mask.all()):
            order = mask.long().argsort(dim=1, descending=True, stable=True)
            ids = ids.masked_fill(~mask, 0).gather(1, order)
            lengths = mask.sum(1).cpu()
        state = state or self.initial_state(ids.shape[0])
        x = self.embedding(ids)
        states = []
        for block, before in zip(self._blocks(), state.blocks, strict=True):
            x, after = block(x, before, lengths, writes=cast(Writes, writes))
            states.append(after)
        logits = self.norm(x) @ self.embedding.weight.T
        if order is not None:
            back = order.argsort(dim=1)
            logits = logits.gather(1, back[..., None].expand_as(logits))
        return logits, state if writes == "off" else ModelState(blocks=tuple(states))

    def parameter_levels(self) -> dict[str, Level]:
        """How often each parameter moves: CMS levels at their period, the rest with every step."""
        levels = {name: Level(1) for name, _ in self.named_parameters()}
        for index, block in enumerate(self._blocks()):
            for name, level in block.continuum.parameter_levels().items():
                levels[f"blocks.{index}.continuum.{name}"] = level
        return levels

    def components(self) -> list[Component]:
        """Everything that holds something over time, for the level table."""
        found = [
            component
            for index, block in enumerate(self._blocks())
            for component in block.components(f"blocks.{index}")
        ]
        in_levels = {n for n, level in self.parameter_levels().items() if ".levels." in n}
        rest = sum(p.numel() for n, p in self.named_parameters() if n not in in_levels)
        found.append(
            Component(
                name="projections, embedding, initial memories",
                level=Level(1),
                memory="matrices",
                rule="outer optimizer",
                context_flow="tokens, error of the next-token loss",
                parameters=rest,
            )
        )
        return found

    def liveness(self, before: ModelState, after: ModelState) -> dict[str, float]:
        """``|write| / |weight|`` between two states, by the component's name; 0 is dead.

        Of every inner memory of the mixers and every level in context.
        """
        found = {}
        for index, block in enumerate(self._blocks()):
            old, new = before.blocks[index], after.blocks[index]
            mixer = block.mixer.liveness(old.mixer, new.mixer)
            levels = block.continuum.liveness(old.continuum, new.continuum)
            found |= {f"blocks.{index}.mixer.{name}": value for name, value in mixer.items()}
            found |= {f"blocks.{index}.continuum.{name}": value for name, value in levels.items()}
        return found

    def activity(self, before: ModelState, after: ModelState) -> dict[str, Activity]:
        """What every level in context did between two states, by the component's name."""
        return {
            f"blocks.{index}.continuum.{name}": value
            for index, block in enumerate(self._blocks())
            for name, value in block.continuum.activity(
                before.blocks[index].continuum, after.blocks[index].continuum
            ).items()
        }

    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def _check(self, ids: Any, state: ModelState | None, mask: Tensor | None) -> None:
        if (
            not isinstance(ids, Tensor)
            or ids.dim() != 2
            or ids.dtype not in (torch.int64, torch.int32)
        ):
            what = (
                f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            )
            raise ValueError(f"ids: expected whole numbers of shape (B, T), got {what}")
        if ids.numel() == 0:
            raise ValueError(f"ids: expected at least one token, got shape {tuple(ids.shape)}")
        device = self.embedding.weight.device
        if ids.device != device:
            raise ValueError(f"ids: expected device {device} (the model's), got {ids.device}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"ids: expected 0 to {self.config.vocab_size - 1}, got {wrong}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != ids.shape):
            raise ValueError(
                f"mask: expected bool of shape {tuple(ids.shape)}, "
                f"got {mask.dtype} {tuple(mask.shape)}"
            )
        if state is None:
            return
        if len(state.blocks) != len(self.blocks):
            raise ValueError(f"state: expected {len(self.blocks)} blocks, got {len(state.blocks)}")
        memory = state.blocks[0].mixer.memory
        if memory.batch != ids.shape[0]:
            raise ValueError(f"state: holds {memory.batch} rows, ids has {ids.shape[0]}")
