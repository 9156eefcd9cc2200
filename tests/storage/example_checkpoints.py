"""Checkpoints whose whole content follows from their step; run as a script, saves that get killed.

python example_checkpoints.py ROOT
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from nestling.storage import Checkpoint, CheckpointError, read, write
from nestling.storage.checkpoint import steps
from nestling.storage.durable import sweep


def example(step: int, size: int = 8) -> Checkpoint:
    value = torch.full((size, size), float(step))
    return Checkpoint(
        step=step,
        tokens=10 * step,
        config={"step": step},
        model={"w": value, "tied": value},
        optimizer={"moment": value + 0.25, "lr": 0.1},
        state={"random": [value.long()], "n": step},
        attachments={"tokenizer.json": json.dumps({"step": step})},
    )


def assert_whole(checkpoint: Checkpoint, size: int = 8) -> None:
    expected = example(checkpoint.step, size)
    assert checkpoint.tokens == expected.tokens
    assert checkpoint.config == expected.config
    assert checkpoint.attachments == expected.attachments
    for name in ("w", "tied"):
        assert torch.equal(checkpoint.model[name], expected.model[name])
    assert torch.equal(checkpoint.optimizer["moment"], expected.optimizer["moment"])
    assert checkpoint.optimizer["lr"] == 0.1
    assert torch.equal(checkpoint.state["random"][0], expected.state["random"][0])
    assert checkpoint.state["n"] == expected.step


def die_at_every_point(root: Path) -> list[int]:
    """The newest step after a save of step 3 that was killed at its n-th file operation."""
    base = root.with_name("before")
    for step in (1, 2):
        write(base, example(step), keep=2)
    newest = []
    for point in range(1, 1000):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(base, root)
        child = os.fork()
        if child == 0:
            _kill_at(point)
            write(root, example(3), keep=2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        for path in steps(root):
            assert_whole(read(path))
        newest.append(read(root).step)
        # what comes next must work whatever the killed save left behind
        sweep(root)
        assert not [entry for entry in root.iterdir() if entry.name.startswith(".")]
        if newest[-1] == 2:
            write(root, example(3), keep=2)
        assert_whole(read(root))
        if os.WIFEXITED(status):
            return newest
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("the save never ended")


def _kill_at(point: int) -> None:
    count = 0
    files = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir")

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in files or event.startswith("shutil."):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def die_at_any_moment(root: Path, size: int = 1200) -> tuple[list[int], list[int]]:
    """For each killed process: the last step it was told to be saved, and what was found then."""
    moments = random.Random(0)
    told, found = [], []
    for _ in range(8):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            step = found[-1] if found else 0
            while True:
                step += 1
                write(root, example(step, size), keep=2)
                os.write(into, b"%d " % step)
        os.close(into)
        told.append(int(os.read(out, 4).split()[0]))
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(out, 4096):
            told[-1] = max([told[-1], *map(int, more.split())])
        os.close(out)
        checkpoint = read(root)
        assert_whole(checkpoint, size)
        found.append(checkpoint.step)
        sweep(root)
    return told, found


def refused_for_its_size(root: Path) -> str:
    """What is said where the system allows no file of more than 100,000 bytes."""
    write(root, example(1))
    out, into = os.pipe()
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            write(root, example(2, size=300))
        except CheckpointError as error:
            os.write(into, str(error).encode())
        os._exit(0)
    os.close(into)
    os.wait()
    return os.read(out, 4096).decode()


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    tests = {
        "points": die_at_every_point(place / "points"),
        "moments": die_at_any_moment(place / "moments"),
        "size": refused_for_its_size(place / "size"),
    }
    print(json.dumps(tests))
