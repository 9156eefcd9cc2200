"""``nestling learn`` from the command line: what it learns, keeps, saves and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nestling.storage.load import load_model
from nestling.train import latest

TEXTS = {"cats.txt": "the cat sat on the mat. ", "code.py": "def f(x): return x + 1\n"}
SMALL = ("--size", "tiny", "--batch", "2", "--length", "32")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text * 60)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_learns_tells_and_saves(cli, place):
    code, out, err = cli("learn", "transformer", *TEXTS, "--out", "known", *SMALL)
    assert code == 0, err
    for word in ("cats.txt", "code.py", "just learned", "saved"):
        assert word in out
    numbers = json.loads((place / "known/record.json").read_text())
    R = numbers["record"]["R"]
    assert R[1][0] < R[0][0]
    assert R[2][1] < R[1][1]
    assert set(numbers["metrics"]) >= {"forgetting", "plasticity", "final_average"}
    assert (place / "known/kept.png").stat().st_size > 5_000
    assert (place / "known/curves.png").stat().st_size > 5_000
    load_model(place / "known")
    code, _, err = cli(
        "learn", str(latest("known")), "code.py", "--out", "more", *SMALL,
        "--strategy", "replay", "--stored", "3",
    )  # fmt: skip
    assert code == 0, err
    before = json.loads((place / "more/record.json").read_text())["record"]["R"][0][0]
    assert before == pytest.approx(R[2][1])  # it begins where the first one ended


def test_a_killed_run_goes_on_to_the_same_numbers(cli, place):
    whole = ("learn", "transformer", *TEXTS, *SMALL, "--passes", "3")
    assert cli(*whole, "--out", "whole")[0] == 0
    command = [sys.executable, "-m", "nestling", *whole, "--out", "cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    for line in process.stdout:  # a row was measured and saved
        if line.split()[0].split("/")[0] not in ("0", ""):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    code, _, err = cli(*whole, "--out", "cut")
    assert code == 0, err
    records = [json.loads((place / name / "record.json").read_text()) for name in ("whole", "cut")]
    assert records[0]["metrics"] == records[1]["metrics"]
    assert records[0]["record"]["R"] == records[1]["record"]["R"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("transformer", "none.txt"), "none.txt: no such file"),
        (("transformer", "cats.txt", "again.txt"), "duplicate file"),
        (("transformer", "short.txt"), "shorter than one sequence"),
        (("transformer", "latin.txt"), "latin.txt: expected text in UTF-8"),
        (("nowhere", "cats.txt"), "model: expected a run, a checkpoint or one of"),
        (("transformer", "cats.txt", "--strategy", "magic"), "--strategy: expected one of"),
        (("transformer", "cats.txt", "--held-out", "1.5"), "--held-out"),
        (("transformer", "cats.txt", "--lr", "-1"), "--lr"),
        (("transformer", "cats.txt", "--batch", "0"), "batch"),
    ],
)
def test_errors_name_the_argument(cli, place, arguments, said):
    (place / "again.txt").write_bytes((place / "cats.txt").read_bytes())
    (place / "short.txt").write_text("short")
    (place / "latin.txt").write_bytes(b"\xff\xfe" * 400)
    code, _, err = cli("learn", *arguments, "--length", "32")
    assert code == 2
    assert said in err


def test_the_folder_of_another_run_is_refused(cli, place):
    assert cli("learn", "transformer", "cats.txt", "--out", "known", *SMALL)[0] == 0
    code, _, err = cli("learn", "transformer", "code.py", "--out", "known", *SMALL)
    assert code == 2
    assert "known" in err
