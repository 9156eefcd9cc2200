"""One Hope block against a Llama decoder layer of equal parameters, and against NeuralMemory."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from benchmarks.timing import paired
from nestling.models import build


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def step(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """Forward and backward of one layer."""

    def run() -> None:
        call(x).square().mean().backward()

    return run


def hope_block() -> nn.Module:
    return build("hope", width=512, heads=8, layers=1, vocab_size=256, memory_hidden=64).blocks[0]


def llama_layer(target: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """``transformers``' decoder layer with SDPA, its MLP sized to ``target`` parameters."""
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    width, heads = 512, 8
    hidden = round((target - 4 * width**2 - 2 * width) / (3 * width))
    config = LlamaConfig(
        hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=hidden, max_position_embeddings=32_768, attn_implementation="sdpa",
    )  # fmt: skip
    layer, rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
    assert abs(parameters(layer) / target - 1) < 0.01

    def call(x: torch.Tensor) -> torch.Tensor:
        place = rotary(x, torch.arange(x.shape[1])[None])
        y = layer(x, position_embeddings=place, attention_mask=None)
        return y[0] if isinstance(y, tuple) else y

    return call


def against_llama(lengths: dict[int, int], pairs: int) -> Iterator[dict[str, object]]:
    """Rows for lengths (with their batch sizes): a ratio above 1 means Hope is faster."""
    block = hope_block()
    llama = llama_layer(parameters(block))
    for length, batch in lengths.items():
        x = torch.randn(batch, length, 512, requires_grad=True)
        pair = paired(step(lambda z: block(z)[0], x), step(llama, x), pairs=pairs)
        yield {
            "suite": "layer", "ours": "Hope block", "peer": "LlamaDecoderLayer",
            "shape": f"width 512, 8 heads, batch {batch}, length {length}",
            "parameters": parameters(block), **pair.row(batch * length),
        }  # fmt: skip


def against_neural_memory(pairs: int) -> Iterator[dict[str, object]]:
    """The self-modifying layer (five memories trained) against titans-pytorch's (one)."""
    from titans_pytorch import NeuralMemory

    from nestling.layers import SelfModifyingConfig, SelfModifyingTitans

    batch, length = 2, 2048
    ours = SelfModifyingTitans(256, 4, SelfModifyingConfig(chunk_size=64, memory_chunk_size=64))
    peer = NeuralMemory(dim=256, heads=4, dim_head=64, chunk_size=64)
    x = torch.randn(batch, length, 256, requires_grad=True)
    pair = paired(step(lambda z: ours(z)[0], x), step(lambda z: peer(z)[0], x), pairs=pairs)
    yield {
        "suite": "layer", "ours": "SelfModifyingTitans", "peer": "titans-pytorch NeuralMemory",
        "shape": f"width 256, 4 heads, chunk 64, batch {batch}, length {length}",
        "parameters": parameters(ours), **pair.row(batch * length),
    }  # fmt: skip
