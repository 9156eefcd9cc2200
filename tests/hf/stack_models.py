"""Tiny models of ten architectures with random weights, and a reader of one token at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from transformers import DynamicCache

# These models are so small that handing work to a second thread takes longer than doing it.
torch.set_num_threads(1)

VOCAB = 48
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 1}
GEMMA = {**GROUPED, "head_dim": 8}
GPT2 = {"vocab_size": VOCAB, "n_embd": 16, "n_inner": 24, "n_layer": 2, "n_head": 2,
        "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
OPT = {"vocab_size": VOCAB, "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2,
       "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 16,
       "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip

DECODERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GEMMA)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=6)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA, sliding_window=6)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SHAPE)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHAPE)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SHAPE)),
}
MODELS = {**DECODERS, **ENCODERS}


def model(name: str = "llama", seed: int = 0, scale: float = 4.0) -> Any:
    """Random weights, large enough that every part matters, in float64."""
    torch.manual_seed(seed)
    made = MODELS[name]().eval().double()
    with torch.no_grad():
        for parameter_name, parameter in made.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            elif "norm" in parameter_name or "ln" in parameter_name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, shape, generator=generator)


def by_chunks(made: Any, tokens: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Logits of the model itself, fed chunk by chunk with a cache of its own library."""
    cache, found = DynamicCache(), []
    for piece in tokens.split(sizes, dim=1):
        out = made(input_ids=piece, past_key_values=cache, use_cache=True)
        found.append(out.logits)
        cache = out.past_key_values
    return torch.cat(found, dim=1)
