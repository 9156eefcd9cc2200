"""A language model of blocks, with its whole inner state as an argument and a return value."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import nn

from nestling.continuum import OnBoundary, Watch
from nestling.continuum.fast import UNWATCHED
from nestling.layers.block import Block, BlockState
from nestling.layers.continuum import Activity
from nestling.layers.norm import RMSNorm
from nestling.layers.self_modifying_config import Writes
from nestling.levels import Component, Level
from nestling.models.components import model_components
from nestling.models.config import ModelConfig
from nestling.models.packing import pack
from nestling.models.state import ModelState
from nestling.shapes import Float, Tensor


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
        for norm in self.modules():
            if isinstance(norm, RMSNorm):
                norm.composite = config.second_order

    @property
    def name(self) -> str:
        """What a person calls it."""
        return self.config.preset

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.config.vocab_size

    @property
    def chunk_size(self) -> int | None:
        """Most tokens whose errors are found together; ``None`` if no level learns from a loss."""
        from nestling.models.stretch import chunk_size

        return chunk_size(self)

    def definition(self) -> dict[str, Any]:
        """What it computes but for its weights, in plain JSON values."""
        return self.config.to_dict()

    def initial_state(self, batch: int) -> ModelState:
        """The state before the first token: the learned initial memories."""
        return ModelState(blocks=tuple(block.initial_state(batch) for block in self.block_list()))

    def forward(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        writes: str = "on",
        on_boundary: OnBoundary | None = None,
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
            on_boundary: called at the end of every period of a level in context, with the weights
                before and after; what it returns is taken instead.

        Levels that learn from the next-token loss hold still here: see :meth:`observe`.

        Raises:
            ValueError: naming the argument.
        """
        self.check(ids, state, mask)
        if writes not in ("on", "off"):
            raise ValueError(f"writes: expected 'on' or 'off', got {writes!r}")
        packed = pack(ids, mask)
        lengths = None if packed.order is None else packed.lengths
        state = state or self.initial_state(ids.shape[0])
        if writes == "on" and state.observed is not None:
            from nestling.models.observe import settled

            state = settled(self, state)
        watch = Watch(on_boundary=on_boundary)
        hidden, blocks = self.read(packed.ids, state.blocks, lengths, writes=writes, watch=watch)
        logits = packed.back(self.logits(hidden))
        return logits, state if writes == "off" else ModelState(blocks=blocks)

    def observe(
        self,
        ids: Tensor,
        state: ModelState | None = None,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        on_boundary: OnBoundary | None = None,
    ) -> tuple[Tensor, ModelState]:
        """Learn from a text: every memory is written, those of the next-token loss too.

        The loss is the mean over the call's tokens of ``-ln p(token | all before it)``, in nats; a
        text's first token is not predicted and does not count. Identical in training and after it,
        with and without an outer gradient. See :func:`nestling.models.observe.observe` for the
        arguments and for the losses token by token.

        >>> from nestling.models import build
        >>> model = build("transformer", width=16, heads=2, layers=1, periods=(4,),
        ...               regime="in_context", source="backprop")
        >>> loss, state = model.observe(torch.arange(9)[None])
        >>> state.blocks[0].continuum.levels["0"].writes        # 8 losses are known: two periods
        tensor([2])
        """
        from nestling.models.observe import observe  # which needs this class

        seen = observe(self, ids, state, mask=mask, targets=targets, on_boundary=on_boundary)
        return seen.loss, seen.state

    def read(
        self,
        ids: Tensor,
        blocks: tuple[BlockState, ...],
        lengths: Tensor | None = None,
        *,
        writes: str = "on",
        watch: Watch = UNWATCHED,
    ) -> tuple[Float[Tensor, "B T D"], tuple[BlockState, ...]]:
        """Output of the last block and the blocks' new states; padding is on the right."""
        x = self.embedding(ids)
        states = []
        for index, (block, before) in enumerate(zip(self.block_list(), blocks, strict=True)):
            own = dataclasses.replace(watch, prefix=f"blocks.{index}.continuum.")
            x, after = block(x, before, lengths, writes=cast(Writes, writes), watch=own)
            states.append(after)
        return x, tuple(states)

    def read_on(self, ids: Tensor, state: ModelState | None = None) -> tuple[Tensor, ModelState]:
        """Logits after the last token, ``(B, V)``, and the state with every memory written."""
        from nestling.models.observe import read_on

        return read_on(self, ids, state)

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T vocab"]:
        """Of the next token, from the last block's output."""
        return self.norm(hidden) @ self.embedding.weight.T

    def parameter_levels(self) -> dict[str, Level]:
        """How often each parameter moves: CMS levels at their period, the rest with every step."""
        levels = {name: Level(1) for name, _ in self.named_parameters()}
        for index, block in enumerate(self.block_list()):
            for name, level in block.continuum.parameter_levels().items():
                levels[f"blocks.{index}.continuum.{name}"] = level
        return levels

    def components(self, name: str = "") -> list[Component]:
        """Everything that holds something over time, for the level table."""
        return model_components(self, name)

    def liveness(self, before: ModelState, after: ModelState) -> dict[str, float]:
        """``|write| / |weight|`` between two states, by the component's name; 0 is dead.

        Of every inner memory of the mixers and every level in context.
        """
        found = {}
        for index, block in enumerate(self.block_list()):
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
            for index, block in enumerate(self.block_list())
            for name, value in block.continuum.activity(
                before.blocks[index].continuum, after.blocks[index].continuum
            ).items()
        }

    def block_list(self) -> list[Block]:
        """The blocks, as what they are."""
        return cast(list[Block], list(self.blocks))

    def check(
        self,
        ids: Any,
        state: ModelState | None,
        mask: Tensor | None,
        targets: Tensor | None = None,
    ) -> None:
        """Refuse what cannot be read.

        Raises:
            ValueError: naming the argument.
        """
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
        if targets is not None:
            if targets.shape != ids.shape or targets.dtype not in (torch.int64, torch.int32):
                raise ValueError(
                    f"targets: expected whole numbers of shape {tuple(ids.shape)}, "
                    f"got {targets.dtype} {tuple(targets.shape)}"
                )
            if int(targets.min()) < 0 or int(targets.max()) >= self.config.vocab_size:
                raise ValueError(f"targets: expected 0 to {self.config.vocab_size - 1}")
        if state is None:
            return
        if len(state.blocks) != len(self.blocks):
            raise ValueError(f"state: expected {len(self.blocks)} blocks, got {len(state.blocks)}")
        memory = state.blocks[0].mixer.memory
        if memory.batch != ids.shape[0]:
            raise ValueError(f"state: holds {memory.batch} rows, ids has {ids.shape[0]}")
