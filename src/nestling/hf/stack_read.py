"""A stretch of text under the loss: read it, find every written matrix's error, write it.

e_t = d/dy_t  sum over the stretch of L,        L_t = -ln p(target_t)         NL 3.3, 7.3
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache

from nestling.continuum import InContext
from nestling.continuum.config import writes_by_loss
from nestling.continuum.fast import pick
from nestling.continuum.rule import Surprise
from nestling.continuum.schedule import Flag
from nestling.hf.adapted import Trace, Written, adapted, columns_of
from nestling.hf.delta import Form
from nestling.hf.plan import Slot, StackConfig
from nestling.hf.stack_state import (
    BlockState,
    Caches,
    Clock,
    KeysValues,
    SlotState,
    StackedState,
)
from nestling.memory.state import Weights
from nestling.shapes import Tensor

IGNORED = -100
"""Target of a token that has none: transformers' own."""


class Read(NamedTuple):
    """A stretch as it was read.

    Attributes:
        logits: ``(B, T, V)``.
        nats: ``(B, T)`` losses, 0 where there is no target; ``None`` without targets.
        caches: of every block, the tokens and padding of the stretch behind those before.
        tape: trace and error of every matrix that is written, by path; empty unless asked for.
    """

    logits: Tensor
    nats: Tensor | None
    caches: Caches
    tape: dict[str, tuple[Trace, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model that is stacked, and what has to be known of it.

    Attributes:
        model: of transformers.
        decoder: whether it reads from left to right with a cache.
        places: positions in its table, where they are learned; ``None`` where they are not.
        blocks: how many.
        takes: names of the arguments of its forward pass.
        outputs: logits of a token; tables may be longer than the vocabulary.
    """

    model: nn.Module
    decoder: bool
    places: int | None
    blocks: int
    takes: frozenset[str]
    outputs: int

    @property
    def device(self) -> torch.device:
        """Where ids are wanted."""
        return next(self.model.parameters()).device


def base_of(model: Any, blocks: int) -> Base:
    """What has to be known of a model.

    Raises:
        ValueError: if it is none that predicts tokens, or reads in another way than by attention.
    """
    config = model.config.get_text_config()
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"model: {type(model).__name__} is an encoder with a decoder, "
                         "expected one or the other")  # fmt: skip
    outputs = model.get_output_embeddings()
    if outputs is None:
        raise ValueError(
            f"model: {type(model).__name__} predicts no tokens: expected one for causal or masked "
            "language modelling"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"model: expected layers of attention, got {sorted(kinds)}")
    core = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft
    takes = frozenset(inspect.signature(core.forward).parameters)
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and re.search(r"wpe|position", name)
    ]
    known = getattr(config, "max_position_embeddings", None)
    places = min([*tables, known or tables[0]]) if tables else None
    return Base(
        model=model, decoder="past_key_values" in takes, places=places, blocks=blocks,
        takes=takes, outputs=outputs.weight.shape[0],
    )  # fmt: skip


def read_stretch(
    base: Base, ids: Tensor, size: Tensor, caches: Caches, held: Tensor, position: Tensor,
    written: Written, *, targets: Tensor | None = None, errors: bool = False, second: bool = False,
) -> Read:  # fmt: skip
    """Read from a state, and find the error of every written matrix if it is asked for.

    Args:
        base: the model.
        ids: ``(B, T)`` on the CPU.
        size: ``(B,)`` real tokens, the rest is padding on the right.
        caches: of the tokens before.
        held: ``(B,)`` tokens in them.
        position: ``(B,)`` place of the first token.
        written: beside the matrices.
        targets: ``(B, T)``, ``IGNORED`` where there is none.
        errors: whether errors are wanted.
        second: whether they are differentiated.
    """
    outer = torch.is_grad_enabled()
    tape: dict[str, Trace] | None = {} if errors else None
    # Of torch's attention kernels only this one can be differentiated twice.
    kernel = sdpa_kernel(SDPBackend.MATH) if second and outer else nullcontext()
    with kernel, torch.set_grad_enabled(outer or errors):
        given = _given(base, ids, size, caches, held, position)
        with adapted(base.model, written, tape):
            out = _call(base.model, given, frozen=not outer)
        logits = out.logits
        nats = None if targets is None else _losses(logits, targets)
        found: dict[str, tuple[Trace, Tensor]] = {}
        if tape and nats is not None:
            again = second and outer
            gradients = torch.autograd.grad(
                nats.sum(), [trace.out for trace in tape.values()], create_graph=again,
                retain_graph=outer,
            )  # fmt: skip
            found = dict(zip(tape, zip(tape.values(), gradients, strict=True), strict=True))
            if not again:
                found = {
                    path: (Trace(*(x.detach() for x in trace)), error)
                    for path, (trace, error) in found.items()
                }
    after = _after(base, out)
    if not outer:
        logits, nats = logits.detach(), None if nats is None else nats.detach()
        after = tuple(
            one and KeysValues(keys=one.keys.detach(), values=one.values.detach()) for one in after
        )
    return Read(logits, nats, after, found)


def write_errors(
    state: StackedState, read: Read, size: Tensor, form: Form, config: StackConfig,
    slots: Sequence[Slot],
) -> StackedState:  # fmt: skip
    """The state with the errors of a stretch in it, and written where a period ends behind it.

    Args:
        state: before.
        read: the stretch, with errors.
        size: ``(B,)`` its tokens.
        form: of what is written.
        config: the levels.
        slots: of the levels in context.

    A decoder's stretch ends where a period does; an encoder's period ends with the text that fills
    it, and the mean is that over all the tokens in it.
    """
    valid = torch.arange(read.logits.shape[1])[None] < size[:, None]
    blocks, clocks = list(state.blocks), dict(state.clocks)
    for name, clock in state.clocks.items():
        level = config.levels[int(name)]
        counted = clock.clock + size
        if not writes_by_loss(level) or level.period is None:
            clocks[name] = dataclasses.replace(clock, seen=clock.seen + size)
            continue
        regime = level.regime
        assert isinstance(regime, InContext)
        ended = (counted >= level.period) & (size > 0)
        fresh = not bool(clock.clock.any())
        for slot in slots:
            if slot.level != int(name):
                continue
            old = blocks[slot.block].levels[name][slot.name]
            new = _gathered(form, regime, slot, old, read.tape[slot.path], valid, fresh)
            if bool(ended.any()):
                flag: Flag = True if bool(ended.all()) else ended
                new = _moved(form, regime, new, counted, clock.writes, flag)
            blocks[slot.block] = _replaced(blocks[slot.block], name, slot.name, new)
        clocks[name] = Clock(
            clock=counted.masked_fill(ended, 0),
            writes=clock.writes + ended.long(),
            seen=clock.seen + size,
            contributed=clock.contributed + counted * ended.long(),
        )
    return dataclasses.replace(state, blocks=tuple(blocks), clocks=clocks)


def _gathered(
    form: Form, regime: InContext, slot: Slot, old: SlotState, found: tuple[Trace, Tensor],
    valid: Tensor, fresh: bool,
) -> SlotState:  # fmt: skip
    trace, error = found
    key = trace.key[..., slice(*slot.rows)]
    if slot.columns != ((0, error.shape[-1]),):
        error = error.index_select(-1, columns_of(slot, error.device))
    # What a rule erases is what was written: the pre-trained weights are not its own.
    held = torch.zeros_like(error) if regime.error_rule.plain else form.product(key, old.weights)
    eta = error.new_tensor(regime.step_size)
    f = regime.error_rule.error(Surprise(key, held, error), eta)
    f = f.masked_fill(~valid.to(f.device)[..., None], 0.0)
    new = form.outer(key, f)
    return dataclasses.replace(old, gathered=new if fresh else form.add(old.gathered, new))


def _moved(
    form: Form, regime: InContext, old: SlotState, count: Tensor, age: Tensor, rows: Flag
) -> SlotState:
    like = next(iter(old.gathered.values()))
    tokens = count.clamp(min=1).to(like)[:, None, None]
    found, moments = form.direction(
        regime.error_rule, old.gathered, tokens, dict(old.moments), age.to(like.device)
    )
    moved = form.add(old.weights, found, regime.share_kept, -regime.step_size)
    none = {name: W.new_zeros(()).expand(W.shape) for name, W in old.gathered.items()}
    return SlotState(
        weights=_pick(rows, moved, old.weights),
        gathered=_pick(rows, none, old.gathered),
        moments={name: _pick(rows, W, old.moments[name]) for name, W in moments.items()},
    )


def _pick(rows: Flag, new: Weights, old: Weights) -> dict[str, Tensor]:
    return {name: pick(rows, W, old[name]) for name, W in new.items()}


def _replaced(block: BlockState, level: str, name: str, slot: SlotState) -> BlockState:
    levels = {**block.levels, level: {**block.levels[level], name: slot}}
    return dataclasses.replace(block, levels=levels)


def _given(
    base: Base, ids: Tensor, size: Tensor, caches: Caches, held: Tensor, position: Tensor
) -> dict[str, Any]:
    """Arguments of the model's own forward pass: as few as the stretch needs."""
    width, device = ids.shape[1], base.device
    given: dict[str, Any] = {"input_ids": ids.to(device)}
    place = torch.arange(width)[None]
    if not base.decoder:
        if bool((size < width).any()):
            # A row without any token still has to look at something.
            mask = place < size.clamp(min=1)[:, None]
            given["attention_mask"] = mask.long().to(device)
        return given
    cache = DynamicCache()
    for index, one in enumerate(caches):
        if one is not None:
            cache.update(one.keys, one.values, index)
    given |= {"past_key_values": cache, "use_cache": True}
    slots = int(held.max())
    if bool((held < slots).any()):
        # Padding on the right is seen by nothing that counts; holes on the left would be.
        before = torch.arange(slots)[None] >= slots - held[:, None]
        mask = torch.cat([before, torch.ones_like(ids, dtype=torch.bool)], dim=1)
        given["attention_mask"] = mask.long().to(device)
    ragged = bool((position != slots).any()) or (
        base.places is not None and slots + width > base.places
    )
    if ragged and "position_ids" in base.takes:
        last = (size - 1).clamp(min=0)[:, None]
        given["position_ids"] = (position[:, None] + place.minimum(last)).to(device)
    return given


def _call(model: nn.Module, given: Mapping[str, Any], *, frozen: bool) -> Any:
    """The forward pass; without a graph behind the weights where nobody asks for one."""
    if frozen and torch.is_grad_enabled() and any(p.requires_grad for p in model.parameters()):
        own = {name: parameter.detach() for name, parameter in model.named_parameters()}
        return functional_call(model, own, (), dict(given))
    return model(**given)


def _after(base: Base, out: Any) -> Caches:
    if not base.decoder:
        return (None,) * base.blocks
    if out.past_key_values is None:
        raise ValueError("model: it keeps no keys and values: gradient checkpointing does that, "
                         "expected it to be off")  # fmt: skip
    layers = out.past_key_values.layers
    return tuple(KeysValues(keys=layer.keys, values=layer.values) for layer in layers)


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(wide.mT, targets.to(wide.device), reduction="none", ignore_index=IGNORED)
