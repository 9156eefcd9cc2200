"""``python -m benchmarks.generate``: generation after ever longer contexts, beside a Llama.

Tokens per second and memory of greedy ``generate`` for one row, at 1K, 4K, 16K and 128K tokens of
context: Hope (``tiny``, bytes) against transformers' Llama with the same width, heads and layers
and an MLP that makes the parameters equal. Both go on from a cache that holds the context, in turn,
and every ratio is of one pair. Llama's cache is filled with random keys and values: what they are
does not change the time, and reading 128K tokens would take most of the run. Hope has read 16K
random tokens in pieces; a state of fixed size costs the same after 128K, and is the same one there.
Times are of the processor and not of the wall: on one thread they are the same, and other work on
the machine changes them little. Memory is what the cache holds, and what the peak of the process
grows by while it writes.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks import hardware
from benchmarks.timing import Pair
from nestling.hf import HopeCache, HopeConfig, HopeForCausalLM
from nestling.memory import flatten

CONTEXTS = (1_024, 4_096, 16_384, 131_072)
READ, PIECE = 16_384, 1_024


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def llama_like(hope: HopeForCausalLM) -> LlamaForCausalLM:
    """Same width, heads, layers and vocabulary; the MLP takes what is left of the parameters."""
    config = hope.config
    width, layers = config.hidden_size, config.num_hidden_layers
    rest = parameters(hope) - config.vocab_size * width - width
    hidden = round((rest / layers - 4 * width**2 - 2 * width) / (3 * width))
    made = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=width, intermediate_size=hidden,
            num_hidden_layers=layers, num_attention_heads=config.num_attention_heads,
            max_position_embeddings=1 << 18, tie_word_embeddings=True, attn_implementation="sdpa",
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip
    assert abs(parameters(made) / parameters(hope) - 1) < 0.01
    return made


@torch.no_grad()
def hope_caches(model: HopeForCausalLM, contexts: tuple[int, ...]) -> dict[int, HopeCache]:
    """The state after each context, or after 16K tokens where the context is longer."""
    cache, found = HopeCache(model.config), {}
    for context in sorted(contexts):
        while cache.columns < min(context, READ):
            size = min(PIECE, min(context, READ) - cache.columns)
            model(torch.randint(256, (1, size)), past_key_values=cache, logits_to_keep=1)
        found[context] = cache.fork()
        found[context].columns = context
    return found


def llama_cache(model: LlamaForCausalLM, context: int) -> DynamicCache:
    """Random keys and values."""
    config, cache = model.config, DynamicCache()
    heads = config.num_key_value_heads
    shape = (1, heads, context, config.hidden_size // config.num_attention_heads)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape), torch.randn(shape), layer)
    return cache


def sharing(cache: DynamicCache) -> DynamicCache:
    """Another cache on the same tensors: writing joins them into new ones and leaves them alone."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def writing(
    model: PreTrainedModel, fresh: Callable[[], HopeCache | DynamicCache], context: int, size: int
) -> Callable[[], None]:
    """``generate`` of so many tokens after one more that is read."""
    token = torch.randint(256, (1, 1))
    mask = torch.ones(1, context + 1, dtype=torch.long)

    def run() -> None:
        model.generate(
            token, attention_mask=mask, past_key_values=fresh(), do_sample=False,
            min_new_tokens=size, max_new_tokens=size,
        )  # fmt: skip

    return run


def processor_seconds(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def paired(ours: Callable[[], None], peer: Callable[[], None], *, pairs: int) -> Pair:
    """As :func:`benchmarks.timing.paired`, in seconds of the processor."""
    ours(), peer()
    taken = [(processor_seconds(ours), processor_seconds(peer)) for _ in range(pairs)]
    return Pair([a for a, _ in taken], [b for _, b in taken])


def cache_bytes(cache: HopeCache | DynamicCache) -> int:
    if isinstance(cache, HopeCache):
        tensors = [*flatten(cache.state).values()]
    else:
        tensors = [x for layer in cache.layers for x in (layer.keys, layer.values)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def growth(run: Callable[[], None]) -> float:
    """Megabytes by which the peak of resident memory rises over what is there before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    status = Path("/proc/self/status")

    def peak() -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1])

    before = peak()
    run()
    return (peak() - before) / 1024


def rows(contexts: tuple[int, ...], size: int, pairs: int) -> Iterator[dict[str, object]]:
    torch.manual_seed(0)
    hope = HopeForCausalLM(HopeConfig("hope", size="tiny"))
    llama = llama_like(hope)
    states = hope_caches(hope, contexts)
    for context in contexts:
        state, kept = states[context], llama_cache(llama, context)
        ours = writing(hope, state.fork, context, size)
        peer = writing(llama, partial(sharing, kept), context, size)
        pair = paired(ours, peer, pairs=pairs)
        row = {"suite": "generate", "context": context, "parameters": parameters(hope)}
        row |= pair.row(size)
        row |= {"ours_cache_mb": cache_bytes(state) / 1e6, "peer_cache_mb": cache_bytes(kept) / 1e6}
        row |= {"ours_peak_mb": growth(ours), "peer_peak_mb": growth(peer)}
        yield row


def line(row: dict) -> str:
    return (
        f"{row['context']:>7,} tokens | {row['ours_tokens_per_s']:.0f} vs "
        f"{row['peer_tokens_per_s']:.0f} tokens/s | {row['ratio']:.2f}x "
        f"[{row['ratio_min']:.2f}, {row['ratio_max']:.2f}] | cache {row['ours_cache_mb']:.1f} vs "
        f"{row['peer_cache_mb']:.1f} MB | peak +{row['ours_peak_mb']:.0f} vs "
        f"+{row['peer_peak_mb']:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=list(CONTEXTS))
    parser.add_argument("--tokens", type=int, default=64, help="written in each run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", action="store_true", help="keep the rows in benchmarks/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    where = hardware.describe()
    print(json.dumps(where))
    found = []
    for row in rows(tuple(options.contexts), options.tokens, options.pairs):
        found.append(row)
        print(line(row), flush=True)
    if options.save:
        print(f"kept in {hardware.keep('generate', where, found)}")


if __name__ == "__main__":
    main()
