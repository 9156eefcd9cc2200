"""``nestling stack``, and the sessions that it makes possible."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import stack_toy as toy
import torch
from transformers.utils import logging

from nestling.hf import load_stacked
from nestling.session import Session

TEXT = toy.sentences(100, seed=7)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    # Whether transformers shows its own progress depends on what was imported and captured before.
    monkeypatch.setattr(logging, "_tqdm_active", False)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy.llama().save_pretrained("llama")
    Path("book.txt").write_text(TEXT)
    return tmp_path


def test_from_a_model_to_a_session_that_knows_its_checkpoint(cli, place):
    code, out, err = cli("stack", "llama", "--levels", "32,128", "-o", "levels", "--rank", "4")
    assert (code, err) == (0, "")
    assert "level 1: every 32 tokens, layers 0, 384 numbers for each text" in out
    assert "level 2: every 128 tokens, layers 1, 384 numbers" in out

    code, out, err = cli("session", "feed", "me", "book.txt", "--checkpoint", "levels")
    assert (code, err) == (0, "")
    assert re.search(rf"{len(TEXT)} tokens \(bytes\)", out)
    code, out, err = cli("session", "generate", "me", "--bytes", "10", "--temperature", "0")
    assert (code, err) == (0, "")
    assert len(out) >= 11
    net = load_stacked("levels")
    with Session.open("me", model=net) as session:
        assert session.position == len(TEXT) + 10
        writes = net.writes(session.state)
    assert writes == {"0": (len(TEXT) + 9) // 32, "1": (len(TEXT) + 9) // 128}

    code, out, _ = cli("session", "show", "me")
    assert code == 0
    assert "stacked LlamaForCausalLM" in out
    assert re.search(r"\n +32 +levels\.0 +1 ", out)
    code, out, _ = cli("session", "diff", "me")
    assert code == 0
    assert "blocks.1.levels.1" in out


def test_what_cannot_be_stacked_says_so(cli, place):
    for arguments, message in [
        (("llama", "--levels", "a,b"), "levels: expected whole numbers"),
        (("llama", "--levels", "128,32"), "fastest first"),
        (("llama", "--levels", "8", "--layers", "7"), "layers: expected indices"),
        (("nowhere", "--levels", "8"), "no such directory"),
        ((".", "--levels", "8"), "config.json: cannot be read"),
        (("llama", "--levels", "8", "--plan", "all"), "plan: expected one of"),
    ]:
        code, _, err = cli("stack", *arguments, "-o", "out")
        assert code == 2
        assert message in err
        assert not Path("out").exists()
    assert cli("stack", "llama", "--levels", "8", "-o", "out")[0] == 0
    code, _, err = cli("stack", "llama", "--levels", "8", "-o", "out")
    assert (code, "exists already" in err) == (2, True)
    code, _, err = cli("stack", "out", "--levels", "8", "-o", "twice")
    assert (code, "stacked already" in err) == (2, True)
    Path("out/nestling.json").write_text("{}")
    code, _, err = cli("session", "feed", "me", "book.txt", "--checkpoint", "out")
    assert (code, "nestling.json: expected format" in err) == (2, True)


def test_a_step_of_zero_reads_like_the_model(cli, place):
    assert cli("stack", "llama", "--levels", "32", "--step-size", "0", "-o", "out")[0] == 0
    ids = torch.tensor([list(TEXT.encode()[:200])])
    with torch.no_grad():
        assert torch.equal(load_stacked("out")(ids)[0], toy.llama()(input_ids=ids).logits)
