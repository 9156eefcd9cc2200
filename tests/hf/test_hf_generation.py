"""``generate``: the draws are transformers', the numbers are ours."""

from itertools import islice

import pytest
import torch
from small_models import CASES, ids_for, model_for
from transformers import DynamicCache, TextStreamer, pipeline

from nestling.hf import HopeCache, HopeConfig, HopeForCausalLM, byte_tokenizer
from nestling.models import build
from nestling.models.sampling import sample

GREEDY = {"do_sample": False, "max_new_tokens": 4}


def own_loop(model: HopeForCausalLM, prompt: torch.Tensor, size: int = 4) -> list[int]:
    """Greedy, with nothing but the language model and its state."""
    with torch.no_grad():
        logits, state = model.language_model(prompt[None])
        found = []
        for _ in range(size):
            found.append(int(logits[0, -1].argmax()))
            logits, state = model.language_model(torch.tensor([found[-1:]]), state)
    return found


@pytest.mark.parametrize("case", CASES)
def test_greedy_is_our_own_loop(case):
    model, ids = model_for(case), ids_for(2, 9)
    expected = [own_loop(model, row) for row in ids]
    assert model.generate(ids, **GREEDY)[:, 9:].tolist() == expected
    if case in ("hope", "hope_attention"):
        assert model.generate(ids, use_cache=False, **GREEDY)[:, 9:].tolist() == expected
    assert model.generate(ids, prefill_chunk_size=4, **GREEDY)[:, 9:].tolist() == expected


@pytest.mark.parametrize("case", ["hope", "hope_attention"])
def test_left_padding_and_beams(case):
    model, ids = model_for(case), ids_for(2, 9)
    padded, mask = ids.clone(), torch.ones_like(ids)
    padded[0, :4], mask[0, :4] = 0, 0
    for words in ({}, {"prefill_chunk_size": 2}):
        made = model.generate(padded, attention_mask=mask, **GREEDY, **words)[:, 9:].tolist()
        assert made == [own_loop(model, ids[0, 4:]), own_loop(model, ids[1])]
    beams = {"num_beams": 3, "num_return_sequences": 2, **GREEDY}
    made = model.generate(ids, **beams)
    assert made.shape == (4, 13)
    assert torch.equal(made, model.generate(ids, use_cache=False, **beams))
    alone = model.generate(ids[1:, 2:], **beams)
    padded = ids.clone()
    padded[1, :2] = 0
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    assert torch.equal(model.generate(padded, attention_mask=mask, **beams)[2:, 9:], alone[:, 7:])


def test_a_long_greedy_text_is_what_sample_writes():
    torch.manual_seed(0)
    own = build("hope", width=16, heads=2, layers=1)
    prompt = torch.tensor(list(b"what was written first"))
    made = HopeForCausalLM.from_language_model(own).generate(
        prompt[None], do_sample=False, max_new_tokens=20
    )
    assert made[0, len(prompt) :].tolist() == list(islice(sample(own, prompt, temperature=0.0), 20))


def test_sampling_returns_sequences_and_is_told_by_the_seed():
    model, ids = model_for("hope"), ids_for(2, 5)
    words = {"do_sample": True, "top_k": 20, "max_new_tokens": 8, "num_return_sequences": 3}
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(model.generate(ids, **words))
    assert made[0].shape == (6, 13)
    assert torch.equal(*made)
    assert len({tuple(row) for row in made[0][:3].tolist()}) > 1


def test_a_conversation_goes_on_from_its_cache():
    model, ids, more = model_for("hope"), ids_for(1, 9), ids_for(1, 12, seed=5)
    cache = HopeCache(model.config)
    first = model.generate(ids, past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == 12  # the last token was drawn and not read
    whole = torch.cat([first, more], 1)
    expected = model.generate(whole, **GREEDY)
    for words in ({}, {"prefill_chunk_size": 5}):
        with_everything = model.generate(whole, past_key_values=cache.fork(), **GREEDY, **words)
        assert torch.equal(with_everything, expected)
        new = whole[:, 12:]
        go_on = model.generate(
            new, attention_mask=cache.mask(new), past_key_values=cache.fork(), **GREEDY, **words
        )
        assert torch.equal(go_on, expected[:, 12:])
    made = model.generate(whole, return_dict_in_generate=True, output_logits=True, **GREEDY)
    assert made.past_key_values.get_seq_length() == 28
    expected = model(whole).logits[:, -1].float()  # as generate keeps them
    torch.testing.assert_close(made.logits[0], expected)


def test_what_cannot_be_is_refused():
    model, ids = model_for("hope"), ids_for(1, 5)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="none of which is new"):
        model.generate(ids, past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match="none of which is new"):
        model.generate(ids[:, :2], past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match="past_key_values: expected a HopeCache"):
        model.generate(ids, past_key_values=DynamicCache(), **GREEDY)
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(ids, cache_implementation="static", **GREEDY)
    with pytest.raises(ValueError, match="prefill_chunk_size"):
        model.generate(ids, use_cache=False, prefill_chunk_size=2, **GREEDY)
    with pytest.raises(ValueError, match="assisted generation"):
        model.generate(ids, assistant_model=model_for("titans"), **GREEDY)


def test_streamer_and_pipeline(capsys):
    torch.manual_seed(0)
    config = HopeConfig("hope", width=16, heads=2, layers=1, eos_token_id=0, pad_token_id=0)
    model, tokenizer = HopeForCausalLM(config), byte_tokenizer()
    prompt = tokenizer("what was", return_tensors="pt")
    made = model.generate(**prompt, streamer=TextStreamer(tokenizer), **GREEDY)
    assert capsys.readouterr().out.strip("\n") == tokenizer.decode(made[0]).strip("\n")
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    alone = [write(text, **GREEDY)[0]["generated_text"] for text in ("what was", "né")]
    both = write(["what was", "né"], batch_size=2, **GREEDY)
    assert [one[0]["generated_text"] for one in both] == alone
    assert alone[0] == tokenizer.decode(made[0])
