"""Memories that are alive: they hold something after a long text, still move, and are of use.

How far a memory moves says nothing alone: one that fades to zero moves by 100 %.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from nestling.models import LanguageModel, build

KEYS, VALUES, PAIRS = 8, 8, 4


def sizes(model: LanguageModel, state) -> dict[str, float]:
    """Norm of every memory of every block."""

    def norm(weights: dict[str, torch.Tensor]) -> float:
        return math.hypot(*(float(W.detach().norm()) for W in weights.values()))

    found = {}
    for index, (block, held) in enumerate(zip(model.blocks, state.blocks, strict=True)):
        found[f"{index}.memory"] = norm(held.mixer.memory.weights)
        for place, name in enumerate(block.mixer.generators):
            own = {n: W[:, place] for n, W in held.mixer.generators.weights.items()}
            found[f"{index}.{name}"] = norm(own)
    return found


def test_memories_neither_fade_nor_explode_nor_freeze():
    torch.manual_seed(0)
    model = build("hope")
    ids = torch.randint(256, (1, 1280))
    with torch.no_grad():
        start = model.initial_state(1)
        _, long_after = model(ids[:, :1024], start)
        _, later = model(ids[:, 1024:], long_after)
    first, last = sizes(model, start), sizes(model, long_after)
    assert len(first) == 2 * 5
    for name, size in first.items():
        assert 0.5 < last[name] / size < 2.0, name
    for name, share in model.liveness(long_after, later).items():
        if "mixer" in name:
            assert share > 1e-4, name


def recall_task(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of a key and a value, new for every row, then the keys again in another order.

    Only a memory of this very row can know the values of the second half. Returns the tokens and
    the places whose next token is such a value.
    """
    keys = torch.rand(rows, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = KEYS + torch.randint(VALUES, (rows, PAIRS), generator=generator)
    order = torch.rand(rows, PAIRS, generator=generator).argsort(1)
    told = torch.stack([keys, values], dim=-1).flatten(1)
    asked = torch.stack([keys.gather(1, order), values.gather(1, order)], dim=-1).flatten(1)
    return torch.cat([told, asked], dim=1), torch.arange(2 * PAIRS, 4 * PAIRS, 2)


def test_hope_recalls_what_it_was_told_and_only_by_its_memories():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = build(
        "hope", width=64, heads=2, layers=1, vocab_size=KEYS + VALUES, periods=(1,), hidden=64
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        ids, places = recall_task(32, generator)
        logits, _ = model(ids)
        loss = F.cross_entropy(logits[:, places].flatten(0, 1), ids[:, places + 1].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    ids, places = recall_task(128, generator)

    def accuracy(**how) -> float:
        with torch.no_grad():
            found = model(ids, **how)[0][:, places].argmax(-1)
        return float((found == ids[:, places + 1]).float().mean())

    assert accuracy() > 0.5
    assert accuracy(writes="off") < 0.25, "chance is 1 in 8"
