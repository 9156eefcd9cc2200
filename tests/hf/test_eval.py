"""Numbers of lm-eval are our own losses: every kind of model, writes on and off, from a session."""

import json
import math

import datasets
import pytest
import torch
from eval_tasks import (
    CHOICES,
    LEARNERS,
    PAIRS,
    TEXTS,
    bytes_of,
    llama,
    model,
    nats,
    run,
    score,
    stacked,
    write_task,
    write_tasks,
)
from small_models import model_for

from nestling.hf import HopeForCausalLM
from nestling.hf.evaluation import Evaluation, evaluate
from nestling.hf.opening import opened
from nestling.hf.scoring import Reading, Speaker
from nestling.hf.tokenizer import byte_tokenizer
from nestling.session import Session

ON_OFF = [(kind, writes) for kind in LEARNERS for writes in ("on", "off")]


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def close(ours, expected):
    assert ours == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("kind", "writes"), [*ON_OFF, ("llama", None)])
def test_scores_are_the_losses_of_the_model(tasks, kind, writes):
    """By hand text by text, by lm-eval in batches of unequal texts."""
    made = model(kind)
    done = run(made, tasks, "pairs", "texts", writes=writes, batch=2)
    scores = [score(made, *pair, writes) for pair in PAIRS]
    close(done["results"]["pairs"]["perplexity"], math.exp(-sum(scores) / len(scores)))
    total = sum(float(nats(made, [0, *bytes_of(text)], writes).sum()) for text in TEXTS)
    size = sum(len(bytes_of(text)) for text in TEXTS)
    close(done["results"]["texts"]["bits_per_byte"], total / size / math.log(2))
    assert done["how"]["writes"] == writes
    assert done["truncated"] == 0
    if writes == "on":  # or on and off could not be told from each other
        assert abs(sum(scores) - sum(score(made, *pair, "off") for pair in PAIRS)) > 1e-3


def test_batches_do_not_matter_and_writes_are_on_where_they_can_be(tasks):
    made = model("stacked")
    one, many = (run(made, tasks, "pairs", "choices", batch=batch) for batch in (1, 3))
    for task in ("pairs", "choices"):
        for name, value in one["results"][task].items():
            assert many["results"][task][name] == pytest.approx(value, rel=1e-9)
    assert one["how"]["writes"] == "on"


def test_a_choice_is_the_likeliest(tasks):
    made = model("stacked")
    done = run(made, tasks, "choices")
    right = normed = 0
    for row in CHOICES:
        found = [score(made, row["question"], " " + one, "on") for one in row["choices"]]
        right += found.index(max(found)) == row["answer"]
        found = [x / len(one) for x, one in zip(found, row["choices"], strict=True)]
        normed += found.index(max(found)) == row["answer"]
    close(done["results"]["choices"]["acc"], right / 3)
    close(done["results"]["choices"]["acc_norm"], normed / 3)
    assert done["documents"]["choices"] == {"original": 3, "effective": 3}
    assert run(made, tasks, "choices", limit=2)["documents"]["choices"]["effective"] == 2


@pytest.mark.parametrize(
    ("kind", "writes"), [("hope", "off"), ("levels_of_the_loss", "on"), ("stacked", "on")]
)
def test_every_request_starts_from_the_session(tasks, tmp_path, kind, writes):
    made = model(kind)
    inner = made.language_model if isinstance(made, HopeForCausalLM) else made
    with Session.open(tmp_path / "notes", model=inner) as session:
        session.feed("what was read before, and more of it")  # ends within a period
        session.save()
        state = session.state
    done = run(made, tasks, "pairs", session=tmp_path / "notes", writes=writes, batch=2)
    scores = [score(made, *pair, writes, state) for pair in PAIRS]
    close(done["results"]["pairs"]["perplexity"], math.exp(-sum(scores) / len(scores)))
    assert abs(sum(scores) - sum(score(made, *pair, writes) for pair in PAIRS)) > 1e-3
    with Session.open(tmp_path / "notes", model=inner) as session:
        assert session.position == 36  # and it is as it was


@pytest.mark.parametrize(("kind", "writes"), ON_OFF)
def test_generation_reads_what_it_writes(kind, writes):
    made = model(kind)
    reading = Reading(learner=opened(made).learner, writes=writes == "on")
    texts = ["the cat sat on the mat", "a hen and"]
    expected = []
    for text in texts:
        ids, state = torch.tensor([bytes_of(text)]), reading.start(1)
        start, new = state, ids
        for _ in range(9):
            with torch.no_grad():
                if writes == "on":
                    logits, state = reading.learner.observe(new, state)
                else:
                    logits = reading.learner.still(ids, start)[:, -1]
            new = logits.argmax(-1, keepdim=True)
            ids = torch.cat([ids, new], dim=1)
        expected.append(ids[0, -9:].tolist())
    tokens = byte_tokenizer()(texts, return_tensors="pt", padding=True, padding_side="left")
    found = Speaker(reading, None).speak(
        tokens.input_ids, tokens.attention_mask, max_new_tokens=9, do_sample=False, pad_token_id=0
    )
    assert found[:, -9:].tolist() == expected


def test_generation_as_a_task(tmp_path):
    made = model("hope")
    tokenizer = byte_tokenizer()
    prompts = ["the cat sat on", "two and two are", "a"]
    answers = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = made.generate(ids, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
        answers.append(tokenizer.decode(out[: out.index(0)] if 0 in out else out))
    assert not any("\n\n" in answer for answer in answers)
    answers[1] += "?"
    rows = [{"text": p, "answer": a} for p, a in zip(prompts, answers, strict=True)]
    words = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    write_task(tmp_path, "speak", rows, output_type="generate_until", doc_to_text="{{text}}",
               doc_to_target="{{answer}}", metric_list=[{"metric": "exact_match"}],
               generation_kwargs=words)  # fmt: skip
    close(run(made, tmp_path, "speak", batch=3)["results"]["speak"]["exact_match"], 2 / 3)
    cut = run(made, tmp_path, "speak", batch=3, length=8)
    assert cut["truncated"] == 2  # only two bytes are left for a prompt


def test_a_long_text_is_cut_into_windows(tasks):
    made = model("hope")
    done = run(made, tasks, "texts", length=20)
    total = 0.0
    for text in TEXTS:
        ids = [0, *bytes_of(text)]
        # Each window starts anew, its first token behind the one before it.
        ends = [*range(20, len(ids) - 1, 20), len(ids) - 1]
        for start, end in zip([0, *ends], ends, strict=False):
            # The last window is filled up with what came before and counts what is new.
            first = max(0, end - 20)
            window = nats(made, ids[first : end + 1], "on")
            total += float(window[-(end - start) :].sum())
    size = sum(len(bytes_of(text)) for text in TEXTS)
    assert done["how"]["length"] == 20
    close(done["results"]["texts"]["bits_per_byte"], total / size / math.log(2))


def test_the_result_is_plain_and_nothing_is_printed(tasks, capfd):
    done = run(stacked(), tasks, "choices", "choices")
    again = run(stacked(), tasks, "choices")
    assert json.dumps(done) == json.dumps(again)
    assert done["model"]["stack"]["levels"] is not None
    assert done["model"]["kind"] == "LlamaForCausalLM with levels"
    assert done["tasks"]["choices"]["output_type"] == "multiple_choice"
    assert not {"git_hash", "date"} & done.keys()
    assert capfd.readouterr() == ("", "")


def test_random_numbers_are_put_back(tasks):
    made = model("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    run(made, tasks, "choices")
    assert torch.equal(torch.rand(3), expected)


def test_what_does_not_fit_is_refused(tasks, tmp_path):
    with pytest.raises(ValueError, match=r"writes: expected 'on', 'off' or None, got 'maybe'"):
        Evaluation(writes="maybe")
    with pytest.raises(ValueError, match=r"length: expected a whole number >= 2, got 1"):
        Evaluation(length=1)
    with pytest.raises(ValueError, match=r"writes: a LlamaForCausalLM has no inner state"):
        run(llama(), tasks, "pairs", writes="on")
    with pytest.raises(ValueError, match=r"session: a LlamaForCausalLM has no inner state"):
        run(llama(), tasks, "pairs", session=tmp_path)
    with pytest.raises(ValueError, match="shots: 'none_please' has none"):
        run(model("hope"), _fixed(tasks, tmp_path), "none_please", shots=2)
    with pytest.raises(ValueError, match=r"tokenizer: expected that of the model"):
        evaluate(model_for("hope"), ["pairs"])


def _fixed(tasks, tmp_path):
    write_task(tmp_path, "none_please", [{"text": "a"}], output_type="loglikelihood_rolling",
               doc_to_text="", doc_to_target="{{text}}", num_fewshot=0,
               metric_list=[{"metric": "bits_per_byte"}])  # fmt: skip
    return tmp_path
