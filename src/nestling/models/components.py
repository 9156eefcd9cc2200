"""A language model as components: its blocks in one gradient flow, from embedding to embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from nestling.layers.block import Block
from nestling.levels import Component, Joint, path, weights_of

if TYPE_CHECKING:
    from nestling.models.language_model import LanguageModel


def model_components(model: LanguageModel, name: str) -> list[Component]:
    """Every component of the blocks, and the embedding that they start from and end in."""
    vocab, width = model.embedding.weight.shape
    embedding = weights_of(
        model, name, own="embedding", memory=f"table {vocab:,} x {width}, tied to the output",
        keep=lambda n: not n.startswith("blocks."),
    )  # fmt: skip
    found, before, links = [], Joint(embedding.name), []
    for index, block in enumerate(cast(list[Block], list(model.blocks))):
        own = path(name, f"blocks.{index}")
        found += block.components(own)
        entry, leave = block.joints(own)
        links += before.then(entry)
        before = leave
    links += before.then(Joint(embedding.name))
    return [*found, embedding.linked(*links)]
