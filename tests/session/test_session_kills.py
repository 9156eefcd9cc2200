"""Kills at any moment: what is found afterwards is a state that an undisturbed reader had."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("example_sessions.py")
SOURCE = Path(__file__).parents[2] / "src"
PIECE = 5


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict:
    """What the script has found; it has held every state against the reference itself."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("killed"))],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kill_at_200_random_moments_leaves_the_last_or_the_next_state(killed):
    told, found = killed["moments"]["told"], killed["moments"]["found"]
    assert len(told) == 200
    # what a process had been told to be saved was there, or the save that it was about to be told
    assert all(found[i] in (told[i], told[i] + PIECE) for i in range(200))
    # every process went on where the one before was killed
    assert all(told[i] >= found[i - 1] for i in range(1, 200))
    assert found[-1] > 100 * PIECE
    # How often a random kill meets a save depends on the disk; the next test meets every step.
    between = sum(a < b for a, b in zip(told, found, strict=True))
    assert between + sum(killed["moments"]["left"]) > 0, "no kill came in the middle of a save"


@pytest.mark.slow
def test_kill_at_every_file_operation_leaves_the_old_or_the_new_state(killed):
    points = killed["points"]
    # first the old one, from one moment on the new one, and never anything else
    assert points["save"] == sorted(points["save"])
    assert set(points["save"]) == {2 * PIECE, 3 * PIECE}
    for name in ("rollback", "roll_back"):
        assert points[name] == sorted(points[name], reverse=True)
        assert set(points[name]) == {PIECE, 2 * PIECE}
    assert set(points["begin"]) == {0}
    assert set(points["fork"]) == {0, 2 * PIECE}
    assert all(len(found) > 4 for found in points.values()), {k: len(v) for k, v in points.items()}
