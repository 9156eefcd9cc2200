"""A toy Llama that a few seconds of training have taught to spell."""

from __future__ import annotations

from functools import cache

import torch
import transformers as hf

torch.set_num_threads(1)

WORDS = "the cat dog hen sat ran hid on in by a mat box bag hat red big old".split()  # noqa: SIM905


def sentences(size: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (size,), generator=generator).tolist()
    return " ".join(WORDS[i] for i in picks)


@cache
def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = new()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    data = torch.tensor(list(sentences(4000, seed=1).encode()))
    for _ in range(120):
        starts = torch.randint(len(data) - 49, (8,))
        rows = torch.stack([data[i : i + 49] for i in starts.tolist()])
        logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.mT, rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def new() -> hf.LlamaForCausalLM:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=2, max_position_embeddings=512)
    ).eval()  # fmt: skip


def llama() -> hf.LlamaForCausalLM:
    """The same numbers with every call."""
    model = new()
    model.load_state_dict(_weights())
    return model
