"""A pre-trained model whose MLPs are levels: what it has read moves them (NL 7.3).

    theta^(l) = W + dW_b,      dW_b <- dW_b - eta F(1/C sum of the errors of C tokens)   for row b

The weights W of the model are read and never written; dW starts at zero for every text, so before
the first write, and with a step size of 0 for ever, this is the model that it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from nestling.continuum.config import writes_by_loss
from nestling.hf.adapted import adapted
from nestling.hf.delta import Full, LowRank
from nestling.hf.mlp_finder import find_mlps
from nestling.hf.plan import StackConfig, across_contexts, slots_of
from nestling.hf.stack_components import stack_components
from nestling.hf.stack_observe import (
    Observation,
    Stack,
    new_text,
    observe_passage,
    observe_text,
    read_text,
)
from nestling.hf.stack_read import IGNORED, base_of, read_stretch
from nestling.hf.stack_state import BlockState, Clock, SlotState, StackedState
from nestling.levels import Component, Level
from nestling.memory import detach
from nestling.models.packing import Packed, pack
from nestling.shapes import Tensor


class StackedModel(nn.Module):
    """A model of transformers with levels; made by :func:`nestling.hf.stack_levels`.

    A text may be fed in pieces cut anywhere: pass on the state. Nothing here depends on
    ``module.training``.

    Args:
        base: the model, which stays as it is.
        config: the levels, and where they are.

    Raises:
        ValueError: if the model has no MLPs to be found, or the levels do not fit it.
    """

    def __init__(self, base: Any, config: StackConfig):
        super().__init__()
        if not isinstance(config, StackConfig):
            raise ValueError(f"config: expected a StackConfig, got {type(config).__name__}")
        self.mlps = find_mlps(base)
        self.across = across_contexts(self.mlps, config)
        form = Full() if config.rank is None else LowRank(config.rank)
        self.stack = Stack(
            base=base_of(base, len(self.mlps)), config=config,
            slots=slots_of(self.mlps, config), form=form,
        )  # fmt: skip
        self.base, self.config = base, config
        places = self.stack.base.places
        if places is not None and config.chunk > places:
            raise ValueError(f"source: expected chunks of at most {places} tokens, which is what "
                             f"the model has positions for, got {config.chunk}")  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.base.config.get_text_config().vocab_size

    def initial_state(self, batch: int) -> StackedState:
        """The state before the first token: nothing is written."""
        weight = next(self.base.parameters())
        form, levels = self.stack.form, self.config.levels
        blocks: list[dict[str, dict[str, SlotState]]] = [{} for _ in self.mlps]
        for slot in self.stack.slots:
            rule = levels[slot.level].regime.error_rule  # pyright: ignore
            zero = form.start(batch, slot.shape, weight)
            blocks[slot.block].setdefault(str(slot.level), {})[slot.name] = SlotState(
                weights=zero, gathered=zero, moments=dict.fromkeys(rule.moments, zero)
            )

        def none() -> Tensor:
            return torch.zeros(batch, dtype=torch.long)

        return StackedState(
            blocks=tuple(BlockState(levels=one) for one in blocks),
            clocks={
                str(index): Clock(clock=none(), writes=none(), seen=none(), contributed=none())
                for index, level in enumerate(levels)
                if level.in_context
            },
            position=none(),
            held=none(),
        )

    def new_text(self, state: StackedState) -> StackedState:
        """What the levels have learned, at the beginning of another text: attention is empty."""
        return new_text(self.stack, state)

    def forward(
        self,
        input_ids: Tensor,
        state: StackedState | None = None,
        attention_mask: Tensor | None = None,
        writes: str = "on",
    ) -> tuple[Tensor, StackedState]:
        """Logits of every token, ``(B, T, V)``, with the matrices as the state holds them.

        Levels learn from the loss, which only :meth:`observe` knows: they hold still here.

        Args:
            input_ids: ``(B, T)`` whole numbers.
            state: from the last call on the same text; ``None`` to start anew.
            attention_mask: ``(B, T)``, 0 at padding anywhere.
            writes: ``"off"`` returns the state as it was: nothing was read.

        Raises:
            ValueError: naming the argument.
        """
        if writes not in ("on", "off"):
            raise ValueError(f"writes: expected 'on' or 'off', got {writes!r}")
        packed, state = self._packed(input_ids, state, attention_mask)
        before = state
        if not self.stack.base.decoder:
            filled = Packed(packed.ids, packed.lengths, torch.full_like(packed.ids, IGNORED), None)
            return packed.back(self._passage_logits(state, filled)), before
        logits, state = read_text(self.stack, state, packed)
        if writes == "off":
            return logits, before
        return logits, state if torch.is_grad_enabled() else detach(state)

    def observe(
        self,
        input_ids: Tensor,
        state: StackedState | None = None,
        attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> tuple[Tensor, StackedState]:
        """Learn from a text: mean loss in nats of the tokens that were predicted, and the state.

        Args:
            input_ids: ``(B, T)`` whole numbers.
            state: from the last call on the same text; ``None`` to start anew.
            attention_mask: ``(B, T)``, 0 at padding anywhere: it neither writes nor moves clocks.
            targets: ``(B, T)``, the token after each; by default the text's own next token, which
                for the last one comes with the next call. An encoder needs them: the token under
                each mask, -100 where there is none.

        Raises:
            ValueError: naming the argument; or within ``torch.inference_mode``, where nothing can
                learn from a gradient.
        """
        seen = self.observation(input_ids, state, attention_mask, targets)
        return seen.loss, seen.state

    def observation(
        self,
        input_ids: Tensor,
        state: StackedState | None = None,
        attention_mask: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Observation:
        """As :meth:`observe`, with the loss of every token."""
        if torch.is_inference_mode_enabled():
            raise ValueError("observe: expected torch.no_grad() or gradients, got inference_mode")
        packed, state = self._packed(input_ids, state, attention_mask, targets)
        if self.stack.base.decoder:
            if targets is not None and state.open is not None and bool(state.open.waiting.any()):
                raise ValueError(
                    "targets: expected none, as the last call's last token waits for its own"
                )
            seen = observe_text(self.stack, state, packed)
        else:
            if targets is None:
                raise ValueError("targets: an encoder needs them: the token under each mask, "
                                 "-100 where there is none; got None")  # fmt: skip
            seen = observe_passage(self.stack, state, packed)
        if torch.is_grad_enabled():
            return seen
        return Observation(nats=seen.nats, scored=seen.scored, state=detach(seen.state))

    def read_on(
        self, input_ids: Tensor, state: StackedState | None = None
    ) -> tuple[Tensor, StackedState]:
        """Logits after the last token, ``(B, V)``, and the state with every level written."""
        seen = self.observation(input_ids, state).state
        assert seen.open is not None
        return seen.open.logits, seen

    @contextmanager
    def adapted(self, state: StackedState) -> Iterator[Any]:
        """The model itself, computing with what is written in ``state`` while this is open.

        Row b of a call to it is row b of the state, or its beam. What the state holds of attention
        is not there: the text that it is given is read from its beginning.

        >>> # with stacked.adapted(state) as model:
        >>> #     model.generate(ids, num_beams=4)
        """
        with adapted(self.base, self.stack.written(state)):
            yield self.base

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, state: StackedState | None = None, **options: Any
    ) -> Tensor:
        """transformers' own ``generate`` with what is written in ``state``; see :meth:`adapted`.

        Raises:
            ValueError: for an encoder.
        """
        if not self.stack.base.decoder:
            raise ValueError(f"generate: {type(self.base).__name__} is an encoder")
        state = state or self.initial_state(input_ids.shape[0])
        if state.batch != input_ids.shape[0]:
            raise ValueError(f"state: holds {state.batch} rows, ids has {input_ids.shape[0]}")
        with self.adapted(state) as model:
            return model.generate(input_ids, **options)

    def parameter_levels(self) -> dict[str, Level]:
        """How often each parameter moves, for :class:`nestling.optim.LevelwiseOptimizer`.

        Those of levels across contexts at their period, the rest with every step.
        """
        found = {name: Level(1) for name, _ in self.named_parameters()}
        for path, index in self.across.items():
            for name, _ in self.base.get_submodule(path).named_parameters(prefix=f"base.{path}"):
                found[name] = Level(self.config.levels[index].period)
        return found

    @torch.no_grad()
    def liveness(self, before: StackedState, after: StackedState) -> dict[str, float]:
        """``|change of dW| / |W|`` between two states, by block and level; 0 is dead."""
        change: dict[str, float] = {}
        size: dict[str, float] = {}
        for slot in self.stack.slots:
            name, level = f"blocks.{slot.block}.levels.{slot.level}", str(slot.level)
            old, new = (s.blocks[slot.block].levels[level][slot.name] for s in (before, after))
            change.setdefault(name, 0.0)
            if bool((before.clocks[level].writes + after.clocks[level].writes).any()):
                change[name] += float(self.stack.form.squares(new.weights, old.weights))
            weight = _weight(self.base.get_submodule(slot.path))
            size[name] = size.get(name, 0.0) + float(weight.float().square().sum()) * after.batch
        return {name: (value / max(size[name], 1e-30)) ** 0.5 for name, value in change.items()}

    def components(self, name: str = "") -> list[Component]:
        """Every level and the weights behind it, for the level table."""
        return stack_components(self.base, self.mlps, self.stack, self.across, name)

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"stacked {type(self.base).__name__}"

    @property
    def chunk_size(self) -> int:
        """Most tokens whose errors are found together."""
        return self.config.chunk

    def definition(self) -> dict[str, Any]:
        """What it computes but for its weights, in plain JSON values."""
        own = self.base.config.to_dict()
        # Where the model came from and what transformers notes down when it saves change nothing
        # that it computes; the class and the dtypes of the weights are told apart from them.
        noted = ("_name_or_path", "architectures", "dtype", "transformers_version")
        base = {k: v for k, v in own.items() if k not in noted}
        return {"stack": self.config.to_dict(), "class": type(self.base).__name__, "base": base}

    def save_pretrained(self, directory: Any) -> None:
        """Write it: :func:`nestling.hf.load_stacked` reads it again.

        Raises:
            ValueError: see :func:`nestling.hf.stack_files.save_stacked`.
        """
        from nestling.hf.stack_files import save_stacked

        save_stacked(self, directory)

    def writes(self, state: StackedState) -> Mapping[str, float]:
        """Writes of a row so far, on average, by level; 0 for a level that cannot be written."""
        return {
            name: float(clock.writes.double().mean()) if writes_by_loss(level) else 0.0
            for name, clock in state.clocks.items()
            for level in (self.config.levels[int(name)],)
        }

    def _passage_logits(self, state: StackedState, packed: Packed) -> Tensor:
        size, none = packed.lengths, torch.zeros_like(packed.lengths)
        caches = (None,) * len(self.mlps)
        return read_stretch(
            self.stack.base, packed.ids, size, caches, none, none, self.stack.written(state)
        ).logits

    def _packed(
        self, ids: Any, state: StackedState | None, mask: Any, targets: Any = None
    ) -> tuple[Packed, StackedState]:
        check_ids(ids, self.vocab_size)
        if mask is not None:
            if not isinstance(mask, Tensor) or mask.shape != ids.shape or mask.is_floating_point():
                raise ValueError(f"attention_mask: expected whole numbers or bool of shape "
                                 f"{tuple(ids.shape)}, got {_told(mask)}")  # fmt: skip
            mask = mask.bool().cpu()
        if targets is not None:
            check_ids(targets, self.vocab_size, "targets", like=ids, least=IGNORED)
            targets = targets.cpu().long()
        state = state or self.initial_state(ids.shape[0])
        if not isinstance(state, StackedState) or state.batch != ids.shape[0]:
            rows = state.batch if isinstance(state, StackedState) else type(state).__name__
            raise ValueError(f"state: expected {ids.shape[0]} rows, got {rows}")
        check_open(state, self.vocab_size)
        return pack(ids.cpu().long(), mask, targets), state


def check_ids(
    ids: Any, vocab_size: int, name: str = "input_ids", like: Tensor | None = None, least: int = 0
) -> None:
    """Refuse what cannot be read.

    Raises:
        ValueError: naming the argument.
    """
    whole = isinstance(ids, Tensor) and ids.dtype in (torch.int64, torch.int32)
    if not whole or ids.dim() != 2 or ids.numel() == 0 or (
        like is not None and ids.shape != like.shape
    ):  # fmt: skip
        shape = "(B, T) with T >= 1" if like is None else str(tuple(like.shape))
        raise ValueError(f"{name}: expected whole numbers of shape {shape}, got {_told(ids)}")
    low, high = int(ids.min()), int(ids.max())
    if high >= vocab_size or (low < 0 and low != least):
        wrong = high if high >= vocab_size else low
        raise ValueError(f"{name}: expected 0 to {vocab_size - 1}, got {wrong}")


def check_open(state: StackedState, vocab_size: int) -> None:
    """A state may come from a file: what indexes a table is looked at first.

    Raises:
        ValueError: if its open chunk is none of this model.
    """
    seen = state.open
    if seen is None:
        return
    tokens = torch.cat([seen.ids, seen.targets], dim=1)
    fits = bool(((tokens >= IGNORED) & (tokens < vocab_size)).all())
    fits = fits and bool((seen.ids >= 0).all())
    fits = fits and bool(((seen.waiting == 0) | (seen.waiting == 1)).all())
    fits = fits and bool(((seen.count >= seen.waiting) & (seen.count <= seen.ids.shape[1])).all())
    fits = fits and bool((seen.count <= state.held).all())
    if not fits:
        raise ValueError(f"state: its open chunk is not one of tokens 0 to {vocab_size - 1}")


def _told(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _weight(module: Any) -> Tensor:
    return (module.get_base_layer() if hasattr(module, "get_base_layer") else module).weight
