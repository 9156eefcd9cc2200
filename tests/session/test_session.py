from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from small_sessions import PRESETS, files, ids, model, read, same, tensors

from nestling.memory import flatten
from nestling.models.sampling import sample
from nestling.session import Session, SessionError, read_saves
from nestling.session.reader import Reader

CUTS = [1, 8, 31, 32, 33, 64, 71]
"""At, before and behind the ends of chunks of 32, and a single token."""


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_and_opened_anywhere_is_the_uninterrupted_reader_to_the_last_bit(tmp_path, preset):
    net, text = model(preset, layers=2), ids(97)
    start = 0
    for stop in [*CUTS, len(text)]:
        with Session.open(tmp_path / "cut", model=net) as session:
            assert session.position == start
            assert session.feed(text[start:stop]) == stop - start
            session.save()
        start = stop
    with (
        Session.open(tmp_path / "cut", model=net) as cut,
        Session.open(tmp_path / "whole", model=net) as whole,
    ):
        for start, stop in zip([0, *CUTS], [*CUTS, len(text)], strict=True):
            whole.feed(text[start:stop])
        expected = tensors(read(net, text, CUTS))
        assert same(tensors(cut), expected)
        assert same(tensors(whole), expected)
        assert cut.position == whole.position == 97
        # and they go on in the same way
        assert cut.generate(20, seed=3) == whole.generate(20, seed=3)
        assert same(tensors(cut), tensors(whole))


@pytest.mark.parametrize("preset", PRESETS)
def test_where_a_text_is_cut_changes_rounding_only(tmp_path, preset):
    net, text = model(preset).double(), ids(97)
    with torch.no_grad():
        logits, state = net(text[None])
    for piece in (1, 7, 32, 50, 97):
        with Session.open(tmp_path / str(piece), model=net) as session:
            session.feed(text, piece=piece)
            session.save()
        with Session.open(tmp_path / str(piece), model=net) as session:
            assert torch.allclose(session.logits, logits[0, -1], rtol=1e-9, atol=1e-11)
            for path, tensor in flatten(state).items():
                found = flatten(session.state)[path]
                assert torch.allclose(found, tensor, rtol=1e-9, atol=1e-11), path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("preset", ["hope", "transformer"])
def test_every_dtype_comes_back_as_it_was(tmp_path, preset, dtype):
    net = model(preset).to(dtype)
    with Session.open(tmp_path, model=net) as session:
        session.feed(ids(40), piece=9)
        session.save()
        before = tensors(session)
    with Session.open(tmp_path, model=net) as session:
        assert same(tensors(session), before)


def test_what_is_fed_may_come_in_many_forms(tmp_path):
    net, text = model("titans"), "né, one\nand two\n" * 3
    expected = list(text.encode())
    forms = {
        "string": text,
        "tensor": torch.tensor(expected),
        "small": torch.tensor(expected, dtype=torch.uint8),
        "list": expected,
        "lines": iter(text.splitlines(keepends=True)),
        "tensors": (torch.tensor(expected)[part] for part in (slice(5), slice(5, None))),
    }
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    found = {}
    with (tmp_path / "book.txt").open(encoding="utf-8", newline="") as opened:
        for name, form in {**forms, "file": opened}.items():
            with Session.open(tmp_path / name, model=net) as session:
                assert session.feed(form, piece=11) == len(expected) == session.position
                found[name] = tensors(session)
    assert len(found) == 7
    for name, state in found.items():
        assert same(state, found["string"]), name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "text: expected at least one token, got none"),
        ([], "text: expected at least one token, got none"),
        ([3, 256], "text: expected ids from 0 to 255, got 256"),
        ([3, -1], "text: expected ids from 0 to 255, got -1"),
        (torch.zeros(3), r"text: expected a string, .* got torch.float32 \(3,\)"),
        (torch.zeros(1, 3).long(), r"text: expected a string, .* got torch.int64 \(1, 3\)"),
        (torch.ones(3).bool(), r"got torch.bool \(3,\)"),
        (b"bytes", "text: expected a string, .* got bytes"),
        ([1, 2.5], "got something that yields int"),
        ([True], "got something that yields bool"),
        (3, "text: expected a string, .* got int"),
        (None, "text: expected a string, .* got NoneType"),
        ("\ud800", "text: character 0 is a lone surrogate"),
    ],
)
def test_what_cannot_be_fed_is_told_and_changes_nothing(tmp_path, text, told):
    with Session.open(tmp_path, model=model("transformer")) as session:
        session.feed("abc")
        before = session.state
        with pytest.raises(ValueError, match=told):
            session.feed(text)
        assert session.state is before
        assert session.position == 3


def test_generation_is_part_of_the_session(tmp_path):
    net = model("hope")
    with Session.open(tmp_path, model=net) as session:
        with pytest.raises(SessionError, match="nothing was read yet: feed a text first"):
            session.generate(5)
        session.feed("the cat sat on the mat")
        said: list[str] = []
        text = session.generate(10, temperature=0.0, on_text=said.append)
        assert "".join(said) == text
        tokens = sample(net, torch.tensor(list(b"the cat sat on the mat")), temperature=0.0)
        written = [next(tokens) for _ in range(10)]
        assert text == bytes(written).decode(errors="replace")
        assert session.position == 22 + 10
        cuts = [22, *range(23, 32)]
        whole = torch.tensor([*b"the cat sat on the mat", *written])
        assert same(tensors(session), tensors(read(net, whole, cuts)))
        with pytest.raises(ValueError, match="size: expected a whole number >= 1, got 0"):
            session.generate(0)
        with pytest.raises(ValueError, match="temperature: expected a number >= 0, got -1"):
            session.generate(5, temperature=-1.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_fork_and_rollback_restore_to_the_last_bit(tmp_path, preset):
    net = model(preset)
    stood = []
    with Session.open(tmp_path / "a", model=net, keep=4) as session:
        for seed in range(5):
            session.feed(ids(20, seed=seed), piece=7)
            assert session.save(f"text {seed}").position == session.position
            stood.append(tensors(session))
        assert [save.position for save in session.saves()] == [40, 60, 80, 100]
        assert [save.note for save in session.saves()] == [f"text {n}" for n in (1, 2, 3, 4)]

        session.feed("not saved")
        unsaved = tensors(session)
        with session.fork(tmp_path / "b") as other:
            assert same(tensors(other), unsaved)
            assert [save.position for save in other.saves()] == [109]
            assert other.saves()[0].note == "forked from a at 109"
            other.feed("elsewhere")
            other.save()
        assert same(tensors(session), unsaved)

        assert session.rollback(0) == 100
        assert same(tensors(session), stood[4])
        assert session.rollback(2) == 60
        assert same(tensors(session), stood[2])
        assert [save.position for save in session.saves()] == [40, 60]
        with pytest.raises(SessionError, match="saves to go back: expected 0 to 1, got 2"):
            session.rollback(2)
        with pytest.raises(SessionError, match="saves to go back: expected 0 to 1, got -1"):
            session.rollback(-1)
        assert same(tensors(session), stood[2])
        session.feed(ids(20, seed=3), piece=7)
        assert same(tensors(session), stood[3])
        assert session.save().number == 7  # numbers are never used twice
    with Session.open(tmp_path / "a", model=net) as session:
        assert same(tensors(session), stood[3])
    with Session.open(tmp_path / "b", model=net) as other:
        assert other.rollback() == 109
        assert same(tensors(other), unsaved)


def test_as_many_saves_are_kept_as_asked_for(tmp_path):
    net = model("titans")
    with Session.open(tmp_path, model=net) as session:
        for _ in range(7):
            session.feed("x")
            session.save()
        assert [save.number for save in session.saves()] == [4, 5, 6, 7, 8]
    with Session.open(tmp_path, model=net, keep=2) as session:
        session.save()
        assert [save.number for save in session.saves()] == [8, 9]
    with Session.open(tmp_path, model=net) as session:
        session.save()
        assert [save.number for save in session.saves()] == [9, 10]
    names = {name.split("/")[0] for name in files(tmp_path)}
    assert names == {"journal.json", "save-00000009", "save-00000010"}
    for keep in (0, -1, True):
        with pytest.raises(SessionError, match="keep: expected a whole number >= 1"):
            Session.open(tmp_path, model=net, keep=keep)


def test_bytes_per_level_do_not_depend_on_the_text(tmp_path):
    for preset in PRESETS:
        with Session.open(tmp_path / preset, model=model(preset, layers=2)) as session:
            sizes, growth = [], []
            for seed in range(4):
                session.feed(ids(75, seed=seed))
                sizes.append(sum(part.bytes for part in session.parts))
                growth.append(sum(part.grows for part in session.parts))
                assert sizes[-1] == sum(
                    tensor.numel() * tensor.element_size()
                    for tensor in flatten(session.state).values()
                )
                norms = [part.norm**2 for part in session.parts if part.norm is not None]
                floats = [t for t in flatten(session.state).values() if t.is_floating_point()]
                assert sum(norms) == pytest.approx(sum(float(t.square().sum()) for t in floats))
                assert session.save().grows == bool(growth[-1])
            each = {later - earlier for earlier, later in pairwise(sizes)}
            assert each == {75 * growth[0]}
            if "attention" in preset or preset == "transformer":
                # 2 layers, keys and values of 16 numbers of 4 bytes
                assert growth[0] == 2 * 2 * 16 * 4
            else:
                assert growth[0] == 0
            assert {(part.fastest, part.slowest) for part in session.parts} == {(1, 1)}


def test_a_window_stops_growing_and_that_is_said(tmp_path):
    with Session.open(tmp_path, model=model("transformer", window=10)) as session:
        session.feed(ids(6))
        assert sum(part.grows for part in session.parts) == 2 * 16 * 4
        session.feed(ids(20))
        assert sum(part.grows for part in session.parts) == 0
        session.save()
    with Session.open(tmp_path, model=model("transformer", window=10)) as session:
        assert session.position == 26


def test_another_models_state_is_refused(tmp_path):
    with Session.open(tmp_path, model=model("hope")) as session:
        session.feed("abc")
        session.save()
    before = files(tmp_path)
    slightly = model("hope")
    with torch.no_grad():
        slightly.embedding.weight[255, 3] += 1e-6
    others = [model("hope", seed=1), slightly, model("titans"), model("hope", eta_max=2.0)]
    for other in others:
        with pytest.raises(SessionError, match="model: the session belongs to another: hope, "):
            Session.open(tmp_path, model=other)

    class Words:
        name, vocab_size, separator = "words", 200, None

        def encode(self, text):
            return torch.tensor([len(word) for word in text.split()])

        def decode(self, ids):
            return " ".join("x" * int(i) for i in ids)

        def count_bytes(self, ids):
            return int(ids.sum())

        def to_json(self):
            return '{"a": 1}'

    with pytest.raises(SessionError, match="tokenizer: the session has read in tokens of 'bytes'"):
        Session.open(tmp_path, model=model("hope"), tokenizer=Words())
    with Session.open(tmp_path / "words", model=model("hope"), tokenizer=Words()) as session:
        assert session.feed("one and three") == 3
    with pytest.raises(SessionError, match="tokenizer: the session has read in tokens of 'words'"):
        Session.open(tmp_path / "words", model=model("hope"))
    with pytest.raises(SessionError, match="tokenizer: bytes has 256 ids, the model knows 99"):
        Session.open(tmp_path / "few", model=model("hope", vocab_size=99))
    after = {n: data for n, data in files(tmp_path).items() if not n.startswith("words")}
    assert after == before


def test_training_the_model_of_an_open_session_is_noticed(tmp_path):
    net = model("hope")
    with Session.open(tmp_path, model=net) as session:
        session.feed("abc")
        session.save()
        with torch.no_grad():
            net.embedding.weight[3, 3] += 1.0
        with pytest.raises(SessionError, match="model: its weights have been written since"):
            session.save()
    assert [save.position for save in read_saves(tmp_path)] == [0, 3]


def test_a_state_that_is_not_finite_is_neither_entered_nor_saved(tmp_path):
    net = model("titans")
    with Session.open(tmp_path, model=net) as session:
        session.feed("abc")
        good = tensors(session)
        sound = net.norm.weight.clone()
        with torch.no_grad():
            net.norm.weight.fill_(float("nan"))
        with pytest.raises(SessionError, match="state: prediction is not finite"):
            session.feed("def")
        assert session.position == 3
        assert same(tensors(session), good)
        with torch.no_grad():
            net.norm.weight.copy_(sound)
        session._reader = Reader(net)
        session._now = dataclasses.replace(session._now, logits=torch.full((256,), math.inf))
        with pytest.raises(SessionError, match="state: logits is not finite"):
            session.save()
        assert session.rollback(0) == 0


def test_interruption_keeps_the_last_whole_piece_and_saves(tmp_path):
    net, text = model("hope"), ids(100)
    calls = 0

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with Session.open(tmp_path, model=net) as session:
        hook = net.blocks[0].register_forward_hook(interrupt)  # in the middle of a piece
        with pytest.raises(KeyboardInterrupt):
            session.feed(text, piece=16)
        hook.remove()
        assert session.position == 48
    expected = tensors(read(net, text[:48], [16, 32]))
    with Session.open(tmp_path, model=net) as session:
        assert same(tensors(session), expected)
        assert session.saves()[-1].note == "interrupted after 48 tokens"
        session.feed(text[48:], piece=16)
        assert same(tensors(session), tensors(read(net, text, [16, 32, 48, 64, 80, 96])))


def test_one_writer_at_a_time_and_readers_at_any_time(tmp_path):
    net = model("transformer")
    session = Session.open(tmp_path, model=net)
    told = f"another process is writing this session .process {os.getpid()} on "
    with pytest.raises(SessionError, match=told):
        Session.open(tmp_path, model=net)
    assert [save.position for save in read_saves(tmp_path)] == [0]
    session.close()
    for use in (session.save, session.rollback, lambda: session.feed("x")):
        with pytest.raises(SessionError, match="this session was closed"):
            use()
    Session.open(tmp_path, model=net).close()


def test_a_dead_process_holds_nothing(tmp_path):
    code = (
        "import sys, time, pathlib\n"
        "from nestling.session import journal\n"
        "with journal.hold(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SessionError, match=f"process {other.pid} on"):
            Session.open(tmp_path, model=model())
    finally:
        other.kill()
        other.wait()
    Session.open(tmp_path, model=model()).close()


def test_what_is_no_session_is_left_alone(tmp_path):
    net = model("transformer")
    with pytest.raises(SessionError, match="is no session yet: give the model or its checkpoint"):
        Session.open(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SessionError, match=r"neither a session nor empty \(it holds thesis.txt\)"):
        Session.open(tmp_path, model=net)
    with pytest.raises(SessionError, match="expected the directory of a session, got a file"):
        Session.open(tmp_path / "thesis.txt", model=net)
    with Session.open(tmp_path / "s", model=net) as session:
        with pytest.raises(SessionError, match="neither a session nor empty"):
            session.fork(tmp_path)
        with pytest.raises(SessionError, match="there is a session already"):
            session.fork(tmp_path / "s")
        Session.open(tmp_path / "t", model=net).close()
        with pytest.raises(SessionError, match="there is a session already"):
            session.fork(tmp_path / "t")
    with pytest.raises(SessionError, match="was begun with a model: give the model"):
        Session.open(tmp_path / "s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "t", "thesis.txt"]
