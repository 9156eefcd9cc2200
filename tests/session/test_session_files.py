"""Files of a session that were cut, changed, swapped, forged or could not be written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from small_sessions import files, ids, model, same, tensors, tiny

from nestling.session import Session, SessionError, read_saves, roll_back
from nestling.session.journal import HEADER, JOURNAL, TENSORS, newest
from nestling.session.reader import Reader
from nestling.session.save import digest_of
from nestling.session.sealed import LIMIT, digest, seal
from nestling.session.session import moment_at

Parts = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> tuple[Path, Reader, list[Parts]]:
    """A session of three saves, a second one of the same model, and the states, newest first."""
    net = tiny()
    folder, states = tmp_path_factory.mktemp("intact"), []
    for name, seed in (("a", 0), ("b", 1)):
        with Session.open(folder / name, model=net, keep=3) as session:
            for n in range(3):
                session.feed(ids(7 + n, seed=seed + n))
                session.save()
                if name == "a":
                    states.insert(0, tensors(session))
    return folder, Reader(net), states


@pytest.fixture
def copy(intact, tmp_path) -> Path:
    shutil.copytree(intact[0] / "a", tmp_path / "a")
    return tmp_path / "a"


def accepted(root: Path, reader: Reader, back: int) -> Parts | str:
    """The state that is read from a damaged session, or the error; anything else is a failure."""
    try:
        newest(root)
        return tensors(moment_at(root, reader, back))
    except SessionError as error:
        told = str(error)
        assert "\n" not in told.strip()
        assert told.isprintable(), told
        return told


def flip(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    for _ in range(chance.choice((1, 1, 1, 2, 16))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def overwrite(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    start = chance.randrange(len(data))
    data[start : start + 8] = chance.randbytes(len(data[start : start + 8]))


def truncate(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    del data[chance.choice((0, len(data) - 1, chance.randrange(len(data)))) :]


def insert(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    where = chance.choice((0, len(data), chance.randrange(len(data) + 1)))
    data[where:where] = chance.choice((b"\0", b" ", b"\xff", b"{", chance.randbytes(9)))


def delete(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice((1, 2, 50))]


def repeat(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    start = chance.randrange(len(data))
    data[start:start] = data[start : start + 64]


def swap(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    data[:] = chance.choice(others)


def splice(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    other, cut = chance.choice(others), chance.randrange(len(data))
    data[cut:] = other[cut:]


def edit_digits(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if digits:
        data[chance.choice(digits)] = 48 + chance.randrange(10)


def edit_word(data: bytearray, chance: random.Random, others: list[bytes]) -> None:
    old, new = chance.choice(
        [(b"true", b"1"), (b"null", b"{}"), (b"[", b"{"), (b":", b","), (b'"', b"'")]
        + [(b"1", value) for value in (b"-1", b"1.0", b"1e400", b"NaN", b"9" * 400, b"null")]
        + [(b"schema", b"Schema"), (b"float32", b"float16"), (b"F32", b"F64"), (b"F32", b"I32")]
        + [(b"state", b"../st"), (b"save", b"/etc"), (b"}", b', "position": 5}')]
    )
    data[:] = data.replace(old, new, chance.choice((1, 2, 1000)))


CHANGES: list[Callable[[bytearray, random.Random, list[bytes]], None]] = [
    *(flip, overwrite, truncate, insert, delete, repeat, swap, splice, edit_digits, edit_word)
]


@pytest.fixture
def fast_disk(tmp_path) -> Iterator[Path]:
    """In memory where there is one: disks take a millisecond to open a file for writing."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_10_000_changed_files_are_refused_or_change_nothing(intact, fast_disk):
    """Never another error than ours, never another state than the one that was saved."""
    folder, reader, states = intact
    root, chance = fast_disk / "a", random.Random(0)
    shutil.copytree(folder / "a", root)
    whole = files(root)
    others = [*whole.values(), *files(folder / "b").values(), b"", b"{}", b"[" * 100_000]
    others += [b'{"sha256": "", "content": {}}', b"\0" * 100, b"1" * 5000, b"\xff\xfe{\0}\0"]
    refused = untouched = 0
    for turn in range(10_000):
        back = chance.choice((0, 0, 0, 1, 2))
        read = [name for name in whole if name.startswith((JOURNAL, f"save-{4 - back:08d}"))]
        some = sorted(whole) if turn % 5 == 0 else read
        changed = chance.sample(some, chance.choice((1, 1, 1, 2)))
        for name in changed:
            data = bytearray(whole[name])
            for change in chance.choices(CHANGES, k=chance.choice((1, 1, 1, 2, 3))):
                if data:
                    change(data, chance, others)
            if turn % 97 == 0:
                (root / name).unlink()
            else:
                (root / name).write_bytes(data)
        found = accepted(root, reader, back)
        if isinstance(found, str):
            refused += 1
        else:
            untouched += 1
            assert same(found, states[back]), (turn, changed, back)
        for name in changed:
            (root / name).write_bytes(whole[name])
    # those that are accepted were changes of a save that was not read, or no changes
    assert refused > 8_000
    assert untouched > 500
    assert same(tensors(moment_at(root, reader)), states[0])


def test_opening_refuses_what_reading_refuses(intact, copy):
    """The same through the door that everybody uses: no lock and no directory is left behind."""
    _, reader, states = intact
    chance, whole = random.Random(1), files(copy)
    for _ in range(60):
        name = chance.choice(sorted(whole))
        data = bytearray(whole[name])
        chance.choice(CHANGES)(data, chance, list(whole.values()))
        (copy / name).write_bytes(data)
        try:
            with Session.open(copy, model=reader.model) as session:
                assert same(tensors(session), states[0])
        except SessionError:
            assert data != whole[name]
        (copy / name).write_bytes(whole[name])
    with Session.open(copy, model=reader.model) as session:
        assert same(tensors(session), states[0])
    assert files(copy) == whole


def forge(root: Path, change: Callable[[dict[str, Any]], Any], data: bytes | None = None) -> None:
    """Change the newest save and seal everything again, as somebody would who means it."""
    journal = json.loads((root / JOURNAL).read_text())["content"]
    folder = root / f"save-{journal['saves'][-1]['number']:08d}"
    header = json.loads((folder / HEADER).read_text())["content"]
    if data is not None:
        (folder / TENSORS).write_bytes(data)
        header.update(bytes=len(data), sha256=digest_of(data))
    change(header)
    (folder / HEADER).write_bytes(seal(header))
    journal["saves"][-1]["seal"] = digest(header)
    (root / JOURNAL).write_bytes(seal(journal))


def newest_tensors(root: Path) -> Parts:
    return load((root / f"save-{read_saves(root)[-1].number:08d}" / TENSORS).read_bytes())


def forge_tensors(root: Path, parts: Parts) -> None:
    """The same with other tensors, whose header says what they are."""

    def describe(header: dict[str, Any]) -> None:
        header["entries"] = {
            name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in parts.items()
        }
        header["clocks"] = {
            name: tensor.flatten().tolist()
            for name, tensor in parts.items()
            if not tensor.is_floating_point()
        }

    forge(root, describe, save(parts))


WEIGHT = "state.blocks.0.mixer.memory.weights.w_in"
FORGED_TENSORS = {
    "not a number": (lambda p: p[WEIGHT].view(-1)[3:4].fill_(float("nan")), "is not finite"),
    "infinite": (lambda p: p[WEIGHT].view(-1)[3:4].fill_(float("-inf")), "is not finite"),
    "prediction": (lambda p: p["logits"].view(-1)[3:4].fill_(float("inf")), "is not finite"),
    "wide": (lambda p: p.update({WEIGHT: torch.zeros(1, 1, 8, 9)}), "expected shape .*8, 9"),
    "one number": (lambda p: p.update({WEIGHT: torch.zeros(1, 1, 1, 1)}), "expected shape"),
    "flat": (lambda p: p.update({WEIGHT: torch.zeros(64)}), r"expected shape .* got \[64\]"),
    "two rows": (lambda p: p.update({WEIGHT: torch.zeros(2, 1, 8, 8)}), "expected shape"),
    "double": (lambda p: p.update({WEIGHT: p[WEIGHT].double()}), "expected torch.float32, got"),
    "whole": (lambda p: p.update({WEIGHT: p[WEIGHT].long()}), "expected torch.float32, got"),
    "missing": (lambda p: p.pop(WEIGHT), "no entry 'blocks.0.mixer.memory.weights.w_in'"),
    "unknown": (lambda p: p.update({"state.blocks.9.x": torch.zeros(1)}), "does not know 'blocks"),
    "path": (lambda p: p.update({"../../x": torch.zeros(1)}), "unknown tensor '../../x'"),
    "few logits": (lambda p: p.update(logits=torch.zeros(5)), r"prediction: .* got .* \(5,\)"),
    "half logits": (lambda p: p.update(logits=p["logits"].half()), "prediction: expected"),
    "no logits": (lambda p: p.pop("logits"), "expected a prediction if and only if"),
    "nothing": (lambda p: p.clear(), "expected a prediction if and only if"),
}


@pytest.mark.parametrize("name", FORGED_TENSORS)
def test_forged_tensors_do_not_fit(intact, copy, name):
    change, told = FORGED_TENSORS[name]
    parts = newest_tensors(copy)
    change(parts)
    forge_tensors(copy, parts)
    with pytest.raises(SessionError, match=told) as caught:
        Session.open(copy, model=intact[1].model)
    assert f"to go back to the save before: nestling session rollback {copy} -n 1" in str(
        caught.value
    )
    # and so one can
    roll_back(copy)
    with Session.open(copy, model=intact[1].model) as session:
        assert same(tensors(session), intact[2][1])


def test_forged_attention_is_tried_before_it_is_used(tmp_path):
    net = model("transformer")
    with Session.open(tmp_path, model=net) as session:
        session.feed(ids(9))
        session.save()
    for keys, told in ((8, "the model cannot read on from it"), (10, r"expected shape .*0 to 9")):
        shutil.copytree(tmp_path, tmp_path / "copy", ignore=lambda *_: ["copy"])
        parts = newest_tensors(tmp_path / "copy")
        name = "state.blocks.0.mixer.memory.weights.k"
        parts[name] = torch.zeros(1, 2, keys, 8)
        forge_tensors(tmp_path / "copy", parts)
        with pytest.raises(SessionError, match=told):
            Session.open(tmp_path / "copy", model=net)
        shutil.rmtree(tmp_path / "copy")


JUNK = [None, True, -1, 0, 10**30, "", "x" * 5000, "a\nb", "\x1b[31m", [], {}, [[]], {"a": 1}]


def test_forged_headers_are_refused_field_by_field(intact, copy):
    """Every value of a header that is sealed again with something else in its place."""
    _, reader, states = intact
    whole, seen = files(copy), 0
    header = read_saves(copy)[-1].to_dict()
    places: list[tuple[str, ...]] = [(name,) for name in header]
    places += [("identity", name) for name in header["identity"]]
    places += [("parts", "0", name) for name in header["parts"][0]]
    places += [("entries", name) for name in list(header["entries"])[:2]]
    places += [("clocks", name) for name in list(header["clocks"])[:2]]

    def at(values: Any, place: tuple[str, ...]) -> Any:
        for name in place:
            values = values[int(name)] if isinstance(values, list) else values[name]
        return values

    for place in places:
        for value in [*JUNK, KeyError]:

            def change(header, place=place, value=value):
                inside = at(header, place[:-1])
                if value is KeyError:
                    del inside[place[-1]]
                else:
                    inside[place[-1]] = value

            if value is not KeyError and at(header, place) == value:
                continue
            forge(copy, change)
            found = accepted(copy, reader, 0)
            seen += 1
            if not isinstance(found, str):
                # for people, and where to look for the model: what it is says its digest
                free = ("position", "saved_at", "note", "nestling", "parts")
                named = ("preset", "parameters", "tokenizer_name", "checkpoint")
                assert place[0] in free or place[-1] in named, (place, value)
                assert same(found, states[0])
            for name, data in whole.items():
                (copy / name).write_bytes(data)
    assert seen > 350


def test_forged_sizes_and_nesting_do_not_exhaust_anything(intact, copy):
    reader, journal = intact[1], copy / JOURNAL
    whole = journal.read_bytes()
    deep = b'{"sha256": "", "content": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
    for data, told in (
        (deep, "truncated or damaged"),
        (b"[" * (LIMIT - 1), "truncated or damaged"),
        (b"9" * 100_000, "truncated or damaged"),
        (b" " * (LIMIT + 1), f"expected at most {LIMIT:,} bytes"),
        (pickle.dumps({"sha256": "", "content": {}}), "truncated or damaged"),
    ):
        journal.write_bytes(data)
        assert told in str(accepted(copy, reader, 0))
    journal.write_bytes(whole)
    file = copy / f"save-{read_saves(copy)[-1].number:08d}" / TENSORS
    kept = file.read_bytes()
    # a safetensors header that speaks of more than there is, and one of a size beyond all memory
    for broken in (
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"x",
        struct.pack("<Q", 70) + b'{"a":{"dtype":"F32","shape":[4611686018427387904],'
        b'"data_offsets":[0,4]}} ' + b"1234",
        pickle.dumps(kept),
    ):
        forge(copy, lambda header: None, broken)
        assert "not a safetensors file" in str(accepted(copy, reader, 0))


def test_links_pipes_and_folders_are_not_followed(intact, copy, tmp_path):
    reader, secret = intact[1], tmp_path / "secret.txt"
    secret.write_text("not yours")
    folder = copy / f"save-{read_saves(copy)[-1].number:08d}"
    for file in (copy / JOURNAL, folder / HEADER, folder / TENSORS):
        data = file.read_bytes()
        file.rename(tmp_path / "moved")
        file.symlink_to(tmp_path / "moved")
        assert "cannot be read: " in str(accepted(copy, reader, 0))
        file.unlink()
        os.mkfifo(file)
        assert "expected a file, got something else" in str(accepted(copy, reader, 0))
        file.unlink()
        file.mkdir()
        assert "expected a file, got something else" in str(accepted(copy, reader, 0))
        file.rmdir()
        file.write_bytes(data)
    (copy / ".lock").unlink()
    (copy / ".lock").symlink_to(secret)
    with pytest.raises(SessionError, match="cannot be written: "):
        Session.open(copy, model=reader.model)
    assert secret.read_text() == "not yours"


def test_newer_schema_and_foreign_formats_are_named(intact, copy):
    reader = intact[1]
    forge(copy, lambda header: header.update(schema=2))
    assert "schema 2; this version reads schema 1" in str(accepted(copy, reader, 0))
    forge(copy, lambda header: header.update(schema=1, format="other"))
    assert "not a file of a nestling session: 'format' differs" in str(accepted(copy, reader, 0))
    content = json.loads((copy / JOURNAL).read_text())["content"]
    (copy / JOURNAL).write_bytes(seal({**content, "schema": True}))
    assert "schema True; this version reads schema 1" in str(accepted(copy, reader, 0))
    (copy / JOURNAL).unlink()
    told = str(accepted(copy, reader, 0))
    assert "journal.json: missing, although there are saves" in told
    assert f"nestling session import {copy}" in told


def test_readers_beside_a_busy_writer_see_whole_saves_only(intact, copy):
    """What is removed while it is being read is read again from what took its place."""
    reader, seen = intact[1], set()
    with Session.open(copy, model=reader.model, keep=1) as session:
        real = os.open

        def overtaken(path, *arguments, **options):
            if str(path).endswith(TENSORS) and len(seen) < 3:
                seen.add(str(path))
                session.feed("x")
                session.save()
            return real(path, *arguments, **options)

        os.open = overtaken
        try:
            moment = moment_at(copy, reader)
        finally:
            os.open = real
        assert len(seen) == 3
        assert moment.position == session.position
        assert same(tensors(moment), tensors(session))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("at", range(1, 7))
def test_disk_full_at_any_flush_keeps_the_session_usable(intact, copy, monkeypatch, code, at):
    """Disks that allocate late report that they are full when a file is flushed."""
    _, reader, states = intact
    with Session.open(copy, model=reader.model) as session:
        assert same(tensors(session), states[0])
        session.feed("more")
        more, real, count = tensors(session), os.fsync, 0

        def full(handle: int) -> None:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(code, os.strerror(code))
            real(handle)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(SessionError) as caught:
            session.save()
        monkeypatch.undo()
        cause = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        told = str(caught.value)
        assert f"could not be written: {cause.get(code, 'Input/output error')}; save 4 is" in told
        assert "\n" not in told
        # two files, their folder and the session's; then the journal, which counts once renamed
        found = tensors(moment_at(copy, reader))
        assert same(found, more if at >= 6 else states[0])
        assert same(tensors(session), more)
        number = session.save().number
        assert number == (6 if at >= 6 else 5)
        assert [save.number for save in session.saves()][-1] == number
    with Session.open(copy, model=reader.model) as session:
        assert same(tensors(session), more)
    names = {name.split("/")[0] for name in files(copy)}
    assert names == {JOURNAL, *(f"save-{save.number:08d}" for save in read_saves(copy))}


def test_really_full_disk(tmp_path):
    """The same with a file system of two megabytes, where one may be mounted."""
    disk, net = tmp_path / "disk", model("transformer")
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, stderr=-1).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with Session.open(disk / "s", model=net, keep=1) as session:
            session.feed(ids(3000))
            session.save()
            before = tensors(session)
            session.feed(ids(15_000))
            with pytest.raises(SessionError, match="the disk is full; save 2 is intact"):
                session.save()
            assert session.rollback(0) == 3000
            assert same(tensors(session), before)
            session.feed("abc")
            assert session.save().position == 3003
        with Session.open(disk / "s", model=net) as session:
            assert session.position == 3003
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_everything_is_flushed_before_it_counts(intact, copy, monkeypatch):
    """Power may fail at any moment: what a rename makes visible has to be on the disk already."""
    events: list[str] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

    def name_of(path: str | Path) -> str:
        name = Path(path).name
        return {"a": "session", ".saving-journal.json": "new journal"}.get(
            name, "hidden" if name.startswith(".saving-save") else name
        )

    def fsync(handle):
        events.append(f"flush {name_of(os.readlink(f'/proc/self/fd/{handle}'))}")
        real["fsync"](handle)

    def moved(kind):
        def move(old, new):
            events.append(f"{name_of(old)} becomes {name_of(new)}")
            real[kind](old, new)

        return move

    with Session.open(copy, model=intact[1].model, keep=10) as session:
        monkeypatch.setattr(os, "fsync", fsync)
        for kind in ("rename", "replace"):
            monkeypatch.setattr(os, kind, moved(kind))
        session.save()
        monkeypatch.undo()
    assert events == [
        f"flush {TENSORS}",
        f"flush {HEADER}",
        "flush hidden",
        "hidden becomes save-00000005",
        "flush session",
        "flush new journal",
        f"new journal becomes {JOURNAL}",
        "flush session",
    ]
