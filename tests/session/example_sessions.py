"""Sessions that get killed; run as a script, because importing torch takes most of the time.

python example_sessions.py ROOT
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from small_sessions import files, ids, same, tensors, tiny

from nestling.session import Session, fork_save, roll_back
from nestling.session import session as session_module
from nestling.session.journal import read_journal
from nestling.session.outline import settled
from nestling.session.reader import Moment, Reader
from nestling.session.session import moment_at

PIECE = 5
KILLS = 200


class Reference:
    """Where a reader that nobody kills stands, by position."""

    def __init__(self) -> None:
        self.model = tiny()
        self.reader = Reader(self.model)
        # One reader for every session: digests and probes of the model are not what is killed here.
        session_module.find_reader = lambda *_, **__: self.reader
        self.text = ids(20_000)
        start = Moment(position=0, state=settled(self.model.initial_state(1)), logits=None)
        self._last, self._known = start, {0: tensors(start)}

    @torch.no_grad()
    def at(self, position: int) -> dict[str, torch.Tensor]:
        while position not in self._known:
            start = self._last.position
            logits, state = self.model(self.piece(start)[None], self._last.state)
            self._last = Moment(
                position=start + PIECE, state=settled(state), logits=logits[0, -1].clone()
            )
            self._known[start + PIECE] = tensors(self._last)
        return self._known[position]

    def piece(self, start: int) -> torch.Tensor:
        return self.text[start : start + PIECE]


def die_at_any_moment(root: Path) -> dict[str, list[int]]:
    """For each killed process: the position it had been told to be saved, and what was found."""
    reference = Reference()
    moments, pace = random.Random(0), 0.02
    told, found, left = [], [], []
    for _ in range(KILLS):
        out, into = os.pipe()
        child = os.fork()
        if child == 0:
            with Session.open(root, model=reference.model, keep=3) as session:
                os.write(into, b"%8d" % session.position)
                while True:
                    session.feed(reference.piece(session.position))
                    session.save()
                    os.write(into, b"%8d" % session.position)
        os.close(into)
        # After one or more saves, somewhere on the way to the next: pace is the time of one.
        position, began, saves = int(os.read(out, 8)), time.monotonic(), moments.randrange(3)
        for _ in range(saves):
            position = int(os.read(out, 8))
        if saves:
            pace = (pace + (time.monotonic() - began) / saves) / 2
        time.sleep(moments.uniform(0.0, pace))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(out, 8):
            position = int(more)
        os.close(out)
        told.append(position)
        left.append(sum(name.startswith(".saving") for name in os.listdir(root)))
        with Session.open(root, model=reference.model) as session:
            found.append(session.position)
            assert same(tensors(session), reference.at(session.position)), found[-1]
        # and so are all saves that one could go back to
        saves = read_journal(root).saves
        for back in range(len(saves)):
            moment = moment_at(root, reference.reader, back)
            assert moment.position == found[-1] - back * PIECE
            assert same(tensors(moment), reference.at(moment.position))
    return {"told": told, "found": found, "left": left}


def die_at_every_point(root: Path) -> dict[str, list[int]]:
    """The position found after each operation was killed at its n-th file operation."""
    reference = Reference()
    before, place, other = root / "before", root / "place", root / "other"
    with Session.open(before, model=reference.model, keep=2) as session:
        for _ in range(2):
            session.feed(reference.piece(session.position))
            session.save()

    def save() -> None:
        with Session.open(place, model=reference.model) as session:
            session.feed(reference.piece(session.position))
            session.save()

    def back() -> None:
        with Session.open(place, model=reference.model) as session:
            session.rollback()

    def begin() -> None:
        Session.open(other, model=reference.model).close()

    operations: dict[str, tuple[Callable[[], object], Path]] = {
        "save": (save, place),
        "rollback": (back, place),
        "roll_back": (lambda: roll_back(place), place),
        "begin": (begin, other),
        "fork": (lambda: fork_save(place, other), other),
    }
    return {
        name: _each_point(operation, target, before, place, other, reference)
        for name, (operation, target) in operations.items()
    }


def _each_point(
    operation: Callable[[], object],
    target: Path,
    before: Path,
    place: Path,
    other: Path,
    reference: Reference,
) -> list[int]:
    found = []
    for point in range(1, 1000):
        for folder in (place, other):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, place)
        child = os.fork()
        if child == 0:
            kill_at(point)
            operation()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # opened again, it stands where some save stood, and what comes next works
        with Session.open(target, model=reference.model) as session:
            found.append(session.position)
            assert same(tensors(session), reference.at(session.position))
            session.feed(reference.piece(session.position))
            session.save()
        with Session.open(target, model=reference.model) as session:
            assert session.position == found[-1] + PIECE
            assert same(tensors(session), reference.at(session.position))
            known = {f"save-{entry.number:08d}" for entry in read_journal(target).saves}
        # nothing is left over that no journal names
        assert {name.split("/")[0] for name in files(target)} == {"journal.json", *known}
        if os.WIFEXITED(status):
            return found
        assert os.WTERMSIG(status) == signal.SIGKILL
    raise AssertionError("the operation never ended")


def kill_at(point: int) -> None:
    count = 0
    changes = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod")

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if written or event in changes or event.startswith("shutil."):
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    # What a process has written outlives it without being flushed; flushing is for power cuts, and
    # its order has a test of its own. Without waiting for the disk, kills meet more of our work.
    os.fsync = lambda handle: None
    place = Path(sys.argv[1])
    tests = {
        "moments": die_at_any_moment(place / "moments"),
        "points": die_at_every_point(place / "points"),
    }
    print(json.dumps(tests))
