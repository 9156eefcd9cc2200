"""The model card that is written beside the weights."""

from __future__ import annotations

from pathlib import Path

from nestling.models import LanguageModel

CARD = "README.md"


def write_card(folder: Path, model: LanguageModel, name: str) -> None:
    """Write ``README.md``, unless somebody has written one."""
    if not (folder / CARD).exists():
        (folder / CARD).write_text(card(model, name), encoding="utf-8")


def card(model: LanguageModel, name: str) -> str:
    """What the model is, what its state does, and how to load it.

    >>> from nestling.models import build
    >>> print(card(build("hope", width=16, heads=2, layers=1), "notes"))
    ---
    library_name: nestling
    pipeline_tag: text-generation
    tags: [nestling, nested-learning, hope]
    ---
    # notes
    ...
    """
    config = model.config
    count = sum(parameter.numel() for parameter in model.parameters())
    chain = config.continuum.chain
    periods = ", ".join("never" if one.period is None else f"{one.period:,}" for one in chain)
    where = "in context" if any(one.in_context for one in chain) else "across contexts"
    learns = (
        "Some levels learn from the next-token loss: `generate` only reads, a forward pass with "
        "`labels` writes them."
        if config.learns_from_loss
        else "Reading is writing: every forward pass moves the inner memories of its cache."
    )
    return f"""---
library_name: nestling
pipeline_tag: text-generation
tags: [nestling, nested-learning, {config.preset}]
---
# {name}

A `{config.preset}` of nestling (Nested Learning for PyTorch): {count:,} parameters, width \
{config.width}, {config.heads} heads, {config.layers} blocks, {config.vocab_size:,} tokens. Levels \
behind each sequence layer move every {periods} tokens ({where}).

```python
import nestling.hf                                   # registers the model type
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("DIRECTORY")
```

## Inner state

{learns} \
The cache that `generate` and the forward pass return is that state: \
`cache.save(directory, model)` keeps it as a session, and `HopeCache.load(directory, model)` goes \
on in another process.

## Training data, evaluation, limits

To be told by whoever trained it.
"""
