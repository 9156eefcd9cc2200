from __future__ import annotations

import dataclasses
import io
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from small_sessions import files, read, same, tensors

from nestling.cli.session_tables import _levels
from nestling.models import LanguageModel
from nestling.session import Session, read_saves
from nestling.session.journal import TENSORS
from nestling.storage import load_model

SMALL = ["--set", "width=16", "--set", "heads=2", "--set", "layers=1", "--set", "hidden=16"]
TEXT = "the cat sat on the mat, and the hen sat on the cat.\n" * 30


@pytest.fixture
def place(tmp_path, monkeypatch, cli) -> Path:
    """A folder with a book and a checkpoint of a Hope and of a Transformer."""
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(TEXT)
    for preset in ("hope", "transformer"):
        options = [*SMALL, "--preset", preset, "--steps", "1", "--batch", "2", "--length", "16"]
        assert cli("train", "book.txt", "--out", preset, "--device", "cpu", *options)[0] == 0
    return tmp_path


def session(*arguments: object) -> list[object]:
    return ["session", *arguments]


def test_every_command_has_a_help_text(cli):
    names = ("list", "show", "diff", "feed", "generate", "fork", "rollback", "export", "import")
    code, out, _ = cli("session", "--help")
    assert code == 0
    for name in names:
        assert re.search(rf"│ {name} +\w", out), name
        code, told, _ = cli("session", name, "-h")
        assert code == 0
        assert "Usage: nestling session" in told


def test_a_session_from_its_beginning_to_its_export(cli, place):
    code, out, err = cli(*session("feed", "s/a", "book.txt", "--checkpoint", "hope"))
    assert (code, err) == (0, "")
    assert re.search(
        r"1,560 tokens \(bytes\) in 0:\d\d, [\d,]+ tokens/s; position 1,560, save 2", out
    )
    net, _ = load_model("hope")
    ids = torch.tensor(list(TEXT.encode()))
    with Session.open("s/a") as opened:  # it knows its checkpoint
        assert same(tensors(opened), tensors(read(net, ids, [1024])))

    code, out, _ = cli(*session("generate", "s/a", "--prompt", "the ", "--bytes", 8, "--seed", 1))
    assert code == 0
    assert out.startswith("the ")
    again = cli(*session("generate", "s/a", "--bytes", 8, "--seed", 1, "--no-save"))[1]
    assert again == cli(*session("generate", "s/a", "--bytes", 8, "--seed", 1, "--no-save"))[1]
    assert [save.position for save in read_saves("s/a")] == [0, 1560, 1572]
    with Session.open("s/a", model=net) as opened:  # where its model was stays known
        assert opened.save().identity.checkpoint == str((place / "hope/step-00000001").resolve())
        opened.rollback()

    code, out, _ = cli(*session("show", "s/a"))
    assert code == 0
    assert out.startswith("s/a: position 1,572 tokens (bytes)\nmodel: hope, ")
    assert f"from {(place / 'hope' / 'step-00000001').resolve()}" in out
    assert re.search(r"1 +mixer\.memory +1 +[\d,]+ +no", out)
    assert "It keeps this size, however long the text is." in out
    assert re.search(r"2 +1,560 .* book\.txt: 1,560 tokens", out)

    assert (
        "s/b: forked from s/a at position 1,560" in cli(*session("fork", "s/a", "s/b", "-n", 1))[1]
    )
    code, out, _ = cli(*session("diff", "s/b", "s/a"))
    assert code == 0
    assert out.startswith("from s/b save 1, position 1,560, to s/a save 3, position 1,572")
    moved = dict(re.findall(r"^ (blocks\S+) +(\S+) *$", out, flags=re.MULTILINE))
    assert set(moved) == {f"blocks.0.mixer.{n}" for n in ("memory", "k", "v", "eta", "alpha")}
    assert all(0 < float(value) < 3 for value in moved.values())
    with Session.open("s/a") as opened:
        after = opened.state
        opened.rollback()
        spoken = opened.model.liveness(opened.state, after)
    assert float(moved["blocks.0.mixer.memory"]) == pytest.approx(
        spoken["blocks.0.mixer.memory"], abs=1e-4
    )
    assert "0.0000" not in cli(*session("diff", "s/a@1", "s/a@2"))[1]
    same_save = cli(*session("diff", "s/a@2", "s/b"))[1]
    assert set(re.findall(r"^ blocks\S+ +(\S+) *$", same_save, flags=re.MULTILINE)) == {"0"}

    assert "position 1,560" in cli(*session("export", "s/a", "out.safetensors"))[1]
    assert "begun with out.safetensors" in cli(*session("import", "out.safetensors", "s/c"))[1]
    with Session.open("s/c") as one, Session.open("s/b") as other:
        assert same(tensors(one), tensors(other))
    code, out, _ = cli(*session("rollback", "s/a"))
    assert out == "s/a: back at save 1, position 0\n"
    code, out, _ = cli(*session("list", "s"))
    assert code == 0
    assert re.search(r"^ a +hope, [\d,]+ parameters +0 .* no +1 ", out, flags=re.MULTILINE)
    assert "imported from out.safetensors" in out


def test_attention_is_said_to_grow(cli, place):
    cli(*session("feed", "s/t", "book.txt", "--checkpoint", "transformer", "--skip", 1500))
    code, out, _ = cli(*session("show", "s/t"))
    assert code == 0
    assert "It grows by 128 bytes with every token, because a layer attends to all" in out
    assert "yes, 128 bytes a token" in cli(*session("list", "s"))[1]
    out = cli(*session("diff", "s/t"))[1]
    assert re.search(r"blocks\.0\.mixer\.memory +from \d+ to 7,688 bytes", out)


def test_a_memory_that_holds_nothing_is_named(cli, place):
    cli(*session("feed", "s", "book.txt", "--checkpoint", "hope", "--skip", 1500))
    assert "Empty" not in cli(*session("show", "s"))[1]
    save = read_saves("s")[-1]
    parts = tuple(
        dataclasses.replace(part, norm=1e-35) if part.name == "mixer.memory" else part
        for part in save.parts
    )
    told = "\n".join(_levels(dataclasses.replace(save, parts=parts)))
    assert "Empty: mixer.memory: all has decayed" in told


def test_text_from_a_pipe_and_saves_on_the_way(cli, place, monkeypatch):
    class Piped:
        buffer = io.BytesIO(TEXT.encode())

    monkeypatch.setattr(sys, "stdin", Piped())
    options = ["--checkpoint", "hope", "--piece", 100, "--save-every", 500, "--keep", 9]
    assert cli(*session("feed", "s", "-", *options))[0] == 0
    assert [save.position for save in read_saves("s")] == [0, 500, 1000, 1500, 1560]
    assert [save.note for save in read_saves("s")][1:] == [
        *(f"stdin: {n} tokens so far" for n in ("500", "1,000", "1,500")),
        "stdin: 1,560 tokens",
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_stopped_feed_is_saved_and_goes_on_to_the_same_state(
    cli, place, monkeypatch, number, code
):
    real, calls = LanguageModel.forward, 0

    def stopped(self, ids, *arguments, **options):
        nonlocal calls
        calls += ids.shape[1] == 100
        if calls == 4:
            os.kill(os.getpid(), number)
        return real(self, ids, *arguments, **options)

    monkeypatch.setattr(LanguageModel, "forward", stopped)
    feed = session("feed", "s", "book.txt", "--checkpoint", "hope", "--piece", 100)
    found, out, err = cli(*feed)
    assert (found, err) == (code, "")
    assert f"{number.name}: saved and stopped at position 400\n" in out
    assert "to go on: nestling session feed s book.txt --skip 400\n" in out
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert read_saves("s")[-1].note == "interrupted after 400 tokens"
    assert cli(*session("feed", "s", "book.txt", "--skip", 400, "--piece", 100))[0] == 0
    with Session.open("s") as opened:
        ids = torch.tensor(list(TEXT.encode()))
        expected = read(opened.model, ids, list(range(100, 1560, 100)))
        assert same(tensors(opened), tensors(expected))


def test_errors_are_one_line(cli, place):
    cli(*session("feed", "s/a", "book.txt", "--checkpoint", "hope", "--skip", 1500))
    before = files(place / "s")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"caf\xe9")
    for arguments, told in (
        (["list", "nowhere"], "nowhere: no such folder"),
        (["list", "hope"], "hope: holds no session; 'nestling session feed NEW TEXT"),
        (["show", "hope"], r"hope: neither a session nor empty \(it holds latest\)"),
        (["show", "s/x"], "s/x: no session is here"),
        (["feed", "s/x", "book.txt"], "s/x: is no session yet: give the model or its checkpoint"),
        (["feed", "s/a", "nowhere.txt"], "nowhere.txt: cannot be read: No such file"),
        (["feed", "s/a", "empty.txt"], "empty.txt: the file is empty"),
        (["feed", "s/a", "latin.txt"], "latin.txt: not UTF-8: byte 0xe9 at offset 3"),
        (["feed", "s/a", "book.txt", "--skip", 1560], "skip: book.txt has 1,560 tokens, all of"),
        (["feed", "s/a", "book.txt", "--checkpoint", "transformer"], "belongs to another: hope"),
        (["diff", "s/a@7", "s/a"], r"s/a@7: expected one of the saves \[1, 2\]"),
        (["rollback", "s/a", "-n", 2], "saves to go back: expected 0 to 1, got 2"),
        (["generate", "s/a", "--prompt", "x", "--temperature", -1], "temperature: expected a num"),
        (["rollback", "s/x"], "s/x: no session is here"),
        (["fork", "s/a", "hope"], "hope: neither a session nor empty"),
        (["fork", "s/a", "s/a"], "s/a: there is a session already"),
        (["export", "s/a", "state.bin"], r"state.bin: expected a name that ends in .safetensors"),
        (["export", "s/a", "x.safetensors", "-n", 5], "saves to go back: expected 0 to 1, got 5"),
        (["import", "x.safetensors", "s/y"], "x.json: missing"),
    ):
        code, _, err = cli(*session(*arguments))
        assert code == 2, arguments
        assert err.startswith("nestling: error: ")
        assert err.count("\n") == 1
        assert re.search(told, err), err
    assert files(place / "s") == before
    assert not Path("s/x").exists()


def test_a_damaged_session_is_listed_and_can_be_gone_back_from(cli, place):
    for name in ("a", "b"):
        feed = session("feed", f"s/{name}", "book.txt", "--checkpoint", "hope", "--skip", 1500)
        assert cli(*feed)[0] == 0
    file = Path("s/a/save-00000002", TENSORS)
    file.write_bytes(file.read_bytes()[:-1])
    _, _, err = cli(*session("generate", "s/a"))
    assert "truncated" in err
    assert "nestling session rollback s/a -n 1" in err
    assert cli(*session("rollback", "s/a", "-n", 1))[1] == "s/a: back at save 1, position 0\n"
    Path("s/b/journal.json").unlink()
    shutil.copytree("s/a", "s/c")
    Path("s/c/journal.json").write_text("{}")
    code, out, _ = cli(*session("list", "s"))
    assert code == 0
    assert re.search(r" c +\S*s/c/journal\.json: not a file of a nestling session", out)
    # without its journal, every save is still a pair of files that can be imported
    assert cli(*session("import", f"s/b/save-00000002/{TENSORS}", "s/d"))[0] == 0
    assert read_saves("s/d")[-1].position == 60


def test_a_moved_checkpoint_is_asked_for(cli, place):
    cli(*session("feed", "s", "book.txt", "--checkpoint", "hope", "--skip", 1500))
    Path("hope").rename("elsewhere")
    code, _, err = cli(*session("generate", "s", "--bytes", 3))
    assert code == 2
    assert "s: its model is not where it was: " in err
    assert "give its checkpoint" in err
    assert cli(*session("generate", "s", "--bytes", 3, "--checkpoint", "elsewhere"))[0] == 0
    assert cli(*session("generate", "s", "--bytes", 3))[0] == 0  # and is remembered
