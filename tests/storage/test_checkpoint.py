from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from example_checkpoints import assert_whole, example

from nestling.storage import CheckpointError, latest, read, write
from nestling.storage.checkpoint import MANIFEST, TENSOR_FILES, steps

SCRIPT = Path(__file__).with_name("example_checkpoints.py")


def test_round_trip_and_what_is_kept(tmp_path):
    for step in (1, 2, 3):
        path = write(tmp_path, example(step), keep=2)
        assert path == tmp_path / f"step-{step:08d}"
        assert (tmp_path / "latest").read_text() == path.name + "\n"
        assert_whole(read(path))
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == [
        "latest",
        "step-00000002",
        "step-00000003",
    ]
    assert read(tmp_path).step == 3
    assert read(tmp_path / "latest").step == 3
    assert read(tmp_path / "step-00000002").step == 2


def test_nothing_is_pickled_and_sizes_are_recorded(tmp_path):
    path = write(tmp_path, example(1))
    files = json.loads((path / MANIFEST).read_text())["files"]
    assert set(files) == {*TENSOR_FILES, "tokenizer.json"}
    for name, told in files.items():
        assert (path / name).stat().st_size == told["bytes"]
    header = (path / "model.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["w"]["shape"] == [8, 8]


def test_order_is_that_of_the_numbers(tmp_path):
    for step in (99_999_999, 100_000_000):
        write(tmp_path, example(step))
    assert read(tmp_path).step == 100_000_000


def test_a_step_is_never_overwritten(tmp_path):
    write(tmp_path, example(1))
    with pytest.raises(CheckpointError, match="step-00000001: exists already"):
        write(tmp_path, example(1))
    assert_whole(read(tmp_path))


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, dict]:
    """What the script has found, in one process because importing torch takes most of the time."""
    root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return root, json.loads(done.stdout)


def test_kill_at_every_file_operation_loses_nothing(killed):
    newest = killed[1]["points"]
    # first the old one, from the rename on the new one, and never anything broken in between
    assert newest == sorted(newest)
    assert set(newest) == {2, 3}
    assert newest.count(2) > 10
    assert newest.count(3) > 5


def test_kill_at_any_time_loses_nothing(killed):
    told, found = killed[1]["moments"]
    # what a process had been told to be saved was still there after it was killed
    assert len(told) == 8
    assert all(a <= b for a, b in zip(told, found, strict=True))
    assert told == sorted(set(told))


def test_file_system_that_refuses_leaves_the_old_checkpoint(killed):
    root, told = killed[0] / "size", killed[1]["size"]
    assert told == f"{root}: step 2 could not be saved: File too large; step-00000001 is intact"
    assert sorted(entry.name for entry in root.iterdir()) == ["latest", "step-00000001"]
    assert_whole(read(root))


@pytest.mark.parametrize("name", [*TENSOR_FILES, MANIFEST, "tokenizer.json"])
def test_truncated_file_is_named_with_the_checkpoint_before(tmp_path, name):
    write(tmp_path, example(1))
    file = write(tmp_path, example(2)) / name
    size = file.stat().st_size
    os.truncate(file, size // 2)
    with pytest.raises(CheckpointError, match="truncated") as caught:
        read(tmp_path)
    message = str(caught.value)
    assert str(file) in message
    assert f"{size // 2} bytes" in message
    assert "the one before is step-00000001: remove step-00000002 to go on from there" in message
    assert_whole(read(tmp_path / "step-00000001"))


@pytest.mark.parametrize("name", TENSOR_FILES)
def test_changed_or_missing_file_is_named(tmp_path, name):
    path = write(tmp_path, example(1))
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name}: damaged: its content has changed"):
        read(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        read(path)


def test_foreign_things_are_told_from_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint"):
        read(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"it holds no step-\* directory"):
        read(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(
        CheckpointError, match=r"model\.pt: not a nestling checkpoint: .*got a file"
    ):
        read(tmp_path / "model.pt")
    foreign = tmp_path / "step-00000005"
    foreign.mkdir()
    (foreign / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint\.json \(found \['pytorch_model\.bin"):
        read(foreign)
    (foreign / MANIFEST).write_text('{"format": "other"}')
    with pytest.raises(CheckpointError, match="'format' is not 'nestling-checkpoint'"):
        read(foreign)
    (foreign / MANIFEST).write_text("[1, 2]")
    with pytest.raises(CheckpointError, match="not a nestling checkpoint"):
        read(foreign)
    (tmp_path / "latest").write_text("step-00000009\n")
    with pytest.raises(CheckpointError, match="step-00000009: no such checkpoint"):
        read(tmp_path / "latest")


def test_newer_schema_and_tampered_lists_are_refused(tmp_path):
    path = write(tmp_path, example(1))
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "schema": 99, "nestling": "9.0"}))
    with pytest.raises(CheckpointError, match=r"schema 99 of nestling 9\.0; this version reads"):
        read(path)
    files = {**manifest["files"], "../../secret": {"bytes": 1, "sha256": ""}}
    (path / MANIFEST).write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(CheckpointError, match=r"lists the files .*secret"):
        read(path)
    (path / MANIFEST).write_text(json.dumps({**manifest, "files": {}}))
    with pytest.raises(CheckpointError, match=r"lists the files \[\]"):
        read(path)
    del manifest["tokens"]
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"damaged: no \['tokens'\]"):
        read(path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("at", range(1, 9))
def test_disk_full_at_any_flush_is_one_clear_line(tmp_path, monkeypatch, code, at):
    """Disks that allocate late report that they are full when a file is flushed."""
    write(tmp_path, example(1))
    real, count = os.fsync, 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count == at:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    cause = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
    with pytest.raises(CheckpointError) as caught:
        write(tmp_path, example(2), keep=1)
    message = str(caught.value)
    # files 1-5 and their folder are flushed before the rename, everything else after it
    where = "step 2 could not be saved" if at <= 6 else "step-00000002: is saved, but the run's dir"
    assert where in message
    assert cause.get(code, "Input/output error") in message
    assert "\n" not in message
    monkeypatch.undo()
    for path in steps(tmp_path):
        assert_whole(read(path))
    assert [path.name[-1] for path in steps(tmp_path)] == (["1"] if at <= 6 else ["1", "2"])


def test_really_full_disk(tmp_path):
    """The same with a file system of two megabytes, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, check=False, stderr=-1).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        write(disk / "run", example(1, size=100))
        with pytest.raises(CheckpointError, match="step 2 could not be saved: the disk is full"):
            write(disk / "run", example(2, size=400))
        assert_whole(read(disk / "run"), size=100)
        assert write(disk / "run", example(2, size=100)).name == "step-00000002"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_latest_of_nothing_is_none(tmp_path):
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None


def test_models_with_tied_weights_are_saved_once(tmp_path):
    from nestling.storage.weights import load_weights, weights

    class Tied(torch.nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.inner = torch.nn.Linear(3, 3)
            self.outer = torch.nn.Linear(3, 3)
            self.outer.weight = self.inner.weight
            self.register_buffer("count", torch.tensor(seed))

    one, other = Tied(1), Tied(2)
    assert sorted(weights(one)) == ["count", "inner.bias", "inner.weight", "outer.bias"]
    load_weights(other, weights(one))
    assert torch.equal(other.outer.weight, one.inner.weight)
    assert other.count == 1
    tensors = weights(one)
    with pytest.raises(ValueError, match=r"the checkpoint misses 'count' \(1 in all\)"):
        load_weights(other, {n: t for n, t in tensors.items() if n != "count"})
    with pytest.raises(ValueError, match="the model does not know 'extra'"):
        load_weights(other, {**tensors, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"inner.bias has shape \(4,\) in the checkpoint, \(3,\)"):
        load_weights(other, {**tensors, "inner.bias": torch.zeros(4)})
