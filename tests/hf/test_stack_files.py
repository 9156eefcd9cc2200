"""A stacked model goes on: to the disk, into another process, into sessions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import stack_models as models
import stack_toy as toy
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nestling.hf import load_stacked, stack_levels
from nestling.hf.stack_files import is_stacked, tokenizer_of
from nestling.levels import Level
from nestling.memory import flatten
from nestling.session import Session, SessionError, compare, read_saves

LEVELS = [Level(period=32), Level(period=128)]
TEXT = toy.sentences(40, seed=7) + "; zebra quartz vixen jumbo. "
STEP = 0.1


def stacked(**changes):
    return stack_levels(toy.llama(), LEVELS, **{"step_size": STEP, **changes})


def ids(text: str) -> torch.Tensor:
    return torch.tensor([list(text.encode())])


@torch.no_grad()
def loss(net, text: str, state=None) -> float:
    """Of a text that begins anew, with what the levels hold."""
    state = None if state is None else net.new_text(state)
    logits, _ = net(ids(text), state)
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], ids(text)[0, 1:]))


@pytest.mark.parametrize("changes", [{}, {"plan": "split"}, {"rank": 4}, {"matrices": "every"}])
def test_what_was_read_is_predicted_better(changes):
    net = stacked(**changes)
    before, state = loss(net, TEXT), None
    found = []
    for _ in range(3):
        with torch.no_grad():
            _, state = net.observe(ids(TEXT), state)
        found.append(loss(net, TEXT, state))
    assert found[0] < before - 0.02
    assert found[2] < found[1] < found[0]
    assert all(value > 0 for value in net.liveness(net.initial_state(1), state).values())


CHILD = """
import json, sys, torch
from nestling.hf.stack_files import load_stacked
from nestling.session import Session
net = load_stacked(sys.argv[1])
text = torch.tensor([list(sys.argv[3].encode())])
with Session.open(sys.argv[2], model=net) as session, torch.no_grad():
    logits, _ = net(text, net.new_text(session.state))
    print(json.dumps([session.position, float(torch.nn.functional.cross_entropy(
        logits[0, :-1], text[0, 1:])), session.generate(12, temperature=0.0)]))
"""


def test_load_generate_stack_feed_save_reload_remember(tmp_path):
    toy.llama().save_pretrained(tmp_path / "llama")
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "llama")
    written = llama.generate(ids("the cat"), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert written.shape == (1, 15)
    net = stack_levels(llama, LEVELS, step_size=STEP)
    before = loss(net, TEXT)
    net.save_pretrained(tmp_path / "stacked")
    with Session.open(tmp_path / "me", model=net) as session:
        assert session.feed(TEXT * 2) == 2 * len(TEXT)
        session.save("read it twice")
        state = session.state
        expected = session.generate(12, temperature=0.0)
    after = loss(net, TEXT, state)
    assert after < before - 0.02

    arguments = [tmp_path / "stacked", tmp_path / "me", TEXT]
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], check=True,
                          capture_output=True, text=True)  # fmt: skip
    position, again, text = json.loads(done.stdout.splitlines()[-1])
    assert (position, text) == (2 * len(TEXT), expected)
    assert again == pytest.approx(after, abs=1e-6)


def test_sessions_look_into_it(tmp_path):
    net = stacked(rank=2)
    with Session.open(tmp_path / "me", model=net) as session:
        session.feed(TEXT, piece=50)
        session.save()
        session.feed(TEXT[:40])  # not saved
    with Session.open(tmp_path / "me", model=net) as session:
        whole, _ = _read(net, TEXT, 50)
        for path, tensor in flatten(session.state).items():
            assert torch.equal(tensor, flatten(whole)[path]), path
        parts = {part.name: part for part in session.parts}
        moved = compare(net, net.initial_state(1), session.state)
        fork = session.fork(tmp_path / "other")
        fork.close()
        assert fork.position == session.position == len(TEXT)
        assert session.rollback() == 0
    assert parts["levels.0"].fastest == 32
    assert parts["levels.1"].slowest == 128
    assert parts["levels.0"].grows == 0
    assert parts["cache"].grows == 2 * 2 * 32 * 4  # keys and values of two blocks, float32
    assert {m.name for m in moved if m.moved} == {"blocks.0.levels.0", "blocks.1.levels.1"}
    saves = read_saves(tmp_path / "other")
    assert saves[-1].identity.preset == "stacked LlamaForCausalLM"
    with pytest.raises(SessionError, match="belongs to another"):
        Session.open(tmp_path / "other", model=stacked())


def _read(net, text, piece):
    from nestling.session.outline import settled

    state, row = settled(net.initial_state(1)), ids(text)
    for part in row.split(piece, dim=1):
        with torch.no_grad():
            _, state = net.read_on(part, state)
        state = settled(state)
    return state, row


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bert"])
def test_saving_changes_nothing(name, tmp_path):
    made, tokens = models.model(name), models.ids(1, 20)
    net = stack_levels(made, [Level(4), Level(None)], plan="split", matrices="every", kept=0.9,
                       error_rule="adam", step_size=0.01, layers=[1], window=9)  # fmt: skip
    net.save_pretrained(tmp_path / "here")
    again = load_stacked(tmp_path / "here")
    assert again.config == net.config
    assert type(again.base) is type(made)
    targets = tokens if name == "bert" else None
    with torch.no_grad():
        first, state = net.observe(tokens, targets=targets)
        second, other = again.observe(tokens, targets=targets)
    assert torch.equal(first, second)
    for path, tensor in flatten(state).items():
        assert torch.equal(tensor, flatten(other)[path]), path
    with pytest.raises(ValueError, match="exists already"):
        net.save_pretrained(tmp_path / "here")


def test_the_wrong_base_is_refused(tmp_path):
    net = stack_levels(models.model(), [Level(4)])
    net.save_pretrained(tmp_path / "here")
    assert load_stacked(tmp_path / "here", base=models.model()).config == net.config
    with pytest.raises(ValueError, match="was made for another model"):
        load_stacked(tmp_path / "here", base=models.model(seed=1))
    with pytest.raises(ValueError, match="was made for another model"):
        load_stacked(tmp_path / "here", base=models.model("qwen2"))
    models.model(seed=1).save_pretrained(tmp_path / "wrong")
    (tmp_path / "here" / "model.safetensors").write_bytes(
        (tmp_path / "wrong" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ValueError, match="was made for another model"):
        load_stacked(tmp_path / "here")


def test_damaged_directories_are_refused(tmp_path):
    net = stack_levels(models.model(), [Level(4)])
    net.save_pretrained(tmp_path / "here")
    file = tmp_path / "here" / "nestling.json"
    said = json.loads(file.read_text())
    for change, message in [
        ({"schema": 2}, "schema"),
        ({"format": "other"}, "format"),
        ({"more": 1}, "unexpected fields"),
        ({"stack": {**said["stack"], "plan": "all"}}, "plan"),
        ({"stack": {**said["stack"], "levels": [{"is": "Thread"}]}}, "unknown type"),
        ({"stack": {**said["stack"], "rank": -1}}, "rank"),
        ({"base": {}}, "class"),
    ]:
        file.write_text(json.dumps({**said, **change}))
        with pytest.raises(ValueError, match=message):
            load_stacked(tmp_path / "here")
    file.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_stacked(tmp_path / "here")
    file.write_text(json.dumps(said))
    config = tmp_path / "here" / "config.json"
    outer = json.loads(config.read_text())
    config.write_text(json.dumps({**outer, "base": {**outer["base"], "architectures": ["AutoX"]}}))
    with pytest.raises(ValueError, match="no model 'AutoX'"):
        load_stacked(tmp_path / "here")
    config.write_text(json.dumps(outer["base"]))
    with pytest.raises(ValueError, match="nestling_stacked"):
        load_stacked(tmp_path / "here")
    with pytest.raises(ValueError, match="cannot be read"):
        load_stacked(tmp_path / "nowhere")


WITHOUT = """
import sys
from transformers import AutoModelForCausalLM, LlamaForCausalLM
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "nestling" not in sys.modules
    print(error)
"""


def test_without_its_levels_it_is_not_loaded(tmp_path):
    net = stack_levels(models.model(), [Level(4)])
    net.save_pretrained(tmp_path / "here")
    assert is_stacked(tmp_path / "here")
    done = subprocess.run([sys.executable, "-c", WITHOUT, str(tmp_path / "here")], check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert "nestling_stacked" in done.stdout  # a type that transformers does not know
    # With nestling the type is known, and still no ordinary model.
    config = AutoConfig.from_pretrained(tmp_path / "here")
    assert config.base["model_type"] == "llama"
    with pytest.raises(ValueError, match="StackedConfig"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "here")


def test_tokenizers(tmp_path):
    assert tokenizer_of(tmp_path, 256).name == "bytes"
    with pytest.raises(ValueError, match=r"expected a tokenizer\.json"):
        tokenizer_of(tmp_path, 100)
    Path(tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected a tokenizer\.json"):
        tokenizer_of(tmp_path, 256)
