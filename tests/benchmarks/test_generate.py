"""The generation benchmark compares equals, and its caches go on."""

import pytest
import torch

from benchmarks import generate as benchmark
from nestling.hf import HopeConfig, HopeForCausalLM


def test_rows():
    small, large = benchmark.rows((20, 40), size=2, pairs=1)
    assert (small["context"], large["context"]) == (20, 40)
    assert small["ours_cache_mb"] == large["ours_cache_mb"] > 0.9
    # two layers, keys and values, 128 numbers of four bytes for every token
    assert large["peer_cache_mb"] == pytest.approx(2 * small["peer_cache_mb"])
    assert large["peer_cache_mb"] == pytest.approx(40 * 2 * 2 * 128 * 4 / 1e6)
    assert large["ratio"] == pytest.approx(large["ours_tokens_per_s"] / large["peer_tokens_per_s"])
    assert "40 tokens" in benchmark.line(large)


def test_equal_parameters_and_a_cache_that_is_shared():
    hope = HopeForCausalLM(HopeConfig("hope", size="tiny"))
    llama = benchmark.llama_like(hope)
    ours, theirs = benchmark.parameters(hope), benchmark.parameters(llama)
    assert abs(theirs / ours - 1) < 0.01
    cache = benchmark.llama_cache(llama, 5)
    ids = torch.zeros(1, 3, dtype=torch.long)
    with torch.no_grad():
        llama(ids, past_key_values=benchmark.sharing(cache))
    assert cache.get_seq_length() == 5
