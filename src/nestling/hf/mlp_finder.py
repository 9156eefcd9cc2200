"""The MLPs of a model that we know nothing of: found by their shapes.

    block = (..., first: D -> hidden, once or twice or both in one matrix,  last: hidden -> D)

A block's linear maps that are not attention's are its MLP: the last one comes back to the width,
the others leave from it. Anything else (experts, adapters of another shape) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
"""In the path of a module that belongs to attention."""


@dataclass(frozen=True)
class Matrix:
    """A linear map of a block.

    Attributes:
        path: of its module in the model.
        inputs: length of the vectors that it reads.
        outputs: length of those that it makes.
    """

    path: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class BlockMLP:
    """The MLP of one block.

    Attributes:
        index: of the block.
        first: gate and up, or both in one, or the only one.
        last: from the hidden vector to the residual stream.
    """

    index: int
    first: tuple[Matrix, ...]
    last: Matrix

    @property
    def hidden(self) -> int:
        """Size of the hidden vector."""
        return self.last.inputs

    @property
    def fused(self) -> bool:
        """Whether gate and up are one matrix."""
        return len(self.first) == 1 and self.first[0].outputs == 2 * self.hidden


def find_mlps(model: nn.Module) -> tuple[BlockMLP, ...]:
    """Every block's MLP, in the order of the blocks.

    Raises:
        ValueError: if the model has no list of blocks, or a block no MLP, saying what there is.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> model = LlamaForCausalLM(LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=20,
    ...     num_hidden_layers=1, num_attention_heads=2))
    >>> [mlp] = find_mlps(model)
    >>> mlp.last.path, mlp.hidden, [matrix.path.split(".")[-1] for matrix in mlp.first]
    ('model.layers.0.mlp.down_proj', 20, ['gate_proj', 'up_proj'])
    """
    path, blocks = find_blocks(model)
    return tuple(
        _mlp(index, f"{path}.{index}", [Matrix(name, *sizes) for name, sizes in linear_maps(block)])
        for index, block in enumerate(blocks)
    )


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of the model's blocks: as many as its configuration has layers.

    Raises:
        ValueError: if there is no such list.
    """
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ValueError(f"model: expected one of transformers, got {type(model).__name__}")
    count = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ValueError(
            f"model: expected a list of {count} blocks in {type(model).__name__}, found none"
        )
    # With one layer other lists may have one entry, too; the blocks are what is large.
    return max(lists, key=lambda found: sum(p.numel() for p in found[1].parameters()))


def linear_maps(module: nn.Module, path: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """Path, inputs and outputs of every linear map outside of attention.

    What speaks of its features is one, also if something else stands inside (an adapter).
    """
    for name, child in module.named_children():
        own = f"{path}.{name}" if path else name
        if ATTENTION.search(name):
            continue
        sizes = linear_sizes(child)
        if sizes is None:
            yield from linear_maps(child, own)
        else:
            yield own, sizes


def linear_sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, ``None`` of anything else.

    >>> linear_sizes(nn.Linear(3, 5)), linear_sizes(nn.LayerNorm(3))
    ((3, 5), None)
    """
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):
        found = getattr(module, inputs, None), getattr(module, outputs, None)
        if isinstance(found[0], int) and isinstance(found[1], int):
            return found[0], found[1]
    return None


def _mlp(index: int, path: str, found: list[Matrix]) -> BlockMLP:
    own = [Matrix(f"{path}.{one.path}", one.inputs, one.outputs) for one in found]
    if len(own) in (2, 3):
        *first, last = own
        hidden, width = last.inputs, last.outputs
        sizes = [one.outputs for one in first]
        leaves = all(one.inputs == width for one in first)
        if leaves and (sizes in ([hidden], [hidden, hidden], [2 * hidden])):
            return BlockMLP(index, tuple(first), last)
    told = ", ".join(f"{one.path} {one.inputs} -> {one.outputs}" for one in found) or "none"
    raise ValueError(
        f"model: expected an MLP in {path}: one or two linear maps from the width and one back "
        f"to it, found {told}"
    )
