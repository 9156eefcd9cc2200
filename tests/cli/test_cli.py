from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

import nestling
from nestling.cli import main
from nestling.train import read

SMALL = ["--set", "width=16", "--set", "heads=2", "--set", "layers=1", "--set", "hidden=16"]
RUN = [*SMALL, "--batch", "2", "--length", "16", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # set by main() too: put back after the test
    threads = torch.get_num_threads()

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["nestling", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def book(tmp_path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text("the cat sat on the mat, and the hen sat on the cat. " * 40)
    return file


def refused(result: tuple[int, str, str], message: str) -> None:
    code, _, err = result
    assert code == 2
    assert err.startswith("nestling: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert re.search(message, err), err


def test_version_and_help(cli):
    assert cli("--version") == (0, f"nestling {nestling.__version__}\n", "")
    code, out, _ = cli("train", "--help")
    assert code == 0
    for option in ("--preset", "--resume", "--carry-state", "--accumulate", "(0.003)"):
        assert option in out


def test_train_generate_inspect(cli, book):
    code, out, err = cli("train", book, "--out", "run", "--steps", "3", *RUN)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    # 2080 bytes, 5 % of them held out; 32 bytes a step
    assert lines[0].startswith("text: 1 document, 2,080 tokens (bytes), 104 held out; 61.8 steps")
    assert re.fullmatch(r"model: hope, [\d,]+ parameters, on cpu", lines[1])
    assert [line.split()[1] for line in lines[2:5]] == ["1/3", "2/3", "3/3"]
    assert "held-out text" in lines[5]
    assert lines[6] == "checkpoint: run/step-00000003"

    first = cli("generate", "run", "--prompt", "the ", "--bytes", "12", "--seed", "3")
    assert first[0] == 0
    assert first[1].startswith("the ")
    assert first == cli(
        "generate", "run/latest", "--prompt", "the ", "--bytes", "12", "--seed", "3"
    )
    assert first[1] != cli("generate", "run", "--prompt", "the ", "--bytes", "12")[1]
    Path("prompt.txt").write_text("the ")
    again = cli("generate", "run", "--prompt-file", "prompt.txt", "--bytes", "12", "--seed", "3")
    assert again == first

    code, out, _ = cli("inspect", "run")
    assert code == 0
    assert out.startswith("run/step-00000003: hope after 3 steps, 96 tokens")
    assert "one step of the optimizer reads 32 (2 x 16 x 1)" in out


def test_resume_needs_nothing_repeated_and_is_exact(cli, book):
    cli("train", book, "--out", "whole", "--steps", "6", *RUN)
    cli("train", book, "--out", "cut", "--steps", "6", "--save-every", "2", *RUN)
    import shutil

    shutil.rmtree("cut/step-00000006")
    code, out, _ = cli("train", "--out", "cut", "--resume", "--threads", "1")
    assert code == 0
    assert "resumed at step 4 of 6" in out

    def losses(name: str) -> list[float]:
        rows = map(json.loads, Path(name, "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if row["kind"] == "train"]

    assert losses("cut") == losses("whole")
    assert len(losses("whole")) == 6


def test_resume_with_other_values_is_refused(cli, book):
    cli("train", book, "--out", "run", "--steps", "2", *RUN)
    again = ["train", "--out", "run", "--resume"]
    refused(cli(*again, "--lr", "0.5"), r"other values \(lr: 0\.5, not 0\.003\)")
    refused(cli(*again, "--preset", "titans"), r"other values \(the model: titans")
    refused(cli(*again, "--held-out", "0.2"), r"held_out: 0\.2, not 0\.05")
    book.write_text("another text, of another length. " * 40)
    refused(cli(*again), r"resume: stream state: the text is not the one .* 1976 tokens then")
    book.unlink()
    refused(cli(*again), r"book\.txt: no such file or folder")
    refused(cli("train", "--out", "nowhere", "--resume"), "nowhere: nothing to resume")
    assert not Path("nowhere").exists()


def test_directory_in_use_is_refused(cli, book):
    cli("train", book, "--out", "run", "--steps", "1", *RUN)
    told = "run: holds a run at step-00000001; resume it, or choose another directory"
    refused(cli("train", book, "--out", "run", "--steps", "1", *RUN), told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"text\.txt: no such file or folder"),
        (b"", r"text\.txt: the file is empty"),
        (
            b"too short",
            r"text: 9 tokens are shorter than one sequence: length 16 needs at least 17",
        ),
        (b"abc \xff def", r"text\.txt: not UTF-8: byte 0xff at offset 4"),
    ],
)
def test_unusable_text_is_one_line(cli, tmp_path, content, message):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    refused(cli("train", "text.txt", "--out", "run", *RUN), message)
    assert not Path("run").exists()


def test_text_that_is_too_short_once_some_is_held_out(cli, tmp_path):
    (tmp_path / "text.txt").write_text("a" * 20)
    refused(
        cli("train", "text.txt", "--held-out", "0.5", *RUN),
        "20 tokens, of which 10 are held out: the rest is shorter than one sequence of length 16",
    )
    code, _, _ = cli("train", "text.txt", "--held-out", "0", "--steps", "1", *RUN)
    assert code == 0
    assert Path("runs/hope-tiny/step-00000001").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "hop"], "preset: expected one of .*'hope'.* got 'hop'"),
        (["--size", "huge"], "size: expected one of .* got 'huge'"),
        (["--set", "widht=3"], "widht: unknown override"),
        (["--set", "width"], "--set: expected name=value, got 'width'"),
        (["--set", "heads=3"], "heads: expected a divisor of width"),
        (["--set", "vocab_size=100"], "vocab_size: expected at least 256"),
        (["--precision", "float16"], "precision: expected 'float32' or 'bfloat16', got 'float16'"),
        (["--device", "cuda:77"], "device: 'cuda:77' cannot be used here"),
        (["--device", "gpu"], "device: 'gpu' cannot be used here"),
        (["--tokenizer", "byts"], "tokenizer: expected 'bytes' or the path of a tokenizer.json"),
        (["--steps", "0"], "steps: expected a whole number >= 1, got 0"),
        (["--clip", "-1"], r"clip: expected a positive number or None, got -1\.0"),
        (["--threads", "0"], "threads: expected a whole number >= 1, got 0"),
        (["--held-out", "1.5"], r"fraction: expected a number in \[0, 1\), got 1\.5"),
    ],
)
def test_bad_option_is_one_line(cli, book, options, message):
    refused(cli("train", book, "--out", "run", "--length", "16", *options), message)
    assert not Path("run").exists()


def test_no_text_and_unknown_options(cli):
    refused(cli("train"), "TEXTS: expected at least one text file")
    code, _, err = cli("train", "--stepz", "3")
    assert code == 2
    assert "stepz" in err


def test_unusable_checkpoints_are_one_line(cli, book):
    cli("train", book, "--out", "run", "--steps", "2", "--save-every", "1", *RUN)
    Path("model.pt").write_bytes(b"PK\x03\x04")
    Path("empty").mkdir()
    Path("foreign").mkdir()
    Path("foreign/config.json").write_text("{}")
    refused(cli("generate", "nowhere"), "nowhere: no such checkpoint")
    refused(cli("generate", "model.pt"), "not a nestling checkpoint: .* got a file")
    refused(cli("generate", "empty"), "it holds no step-")
    refused(cli("inspect", "foreign"), "not a nestling checkpoint")
    refused(cli("inspect", "nothing"), "neither a checkpoint nor a preset; presets are .*hope")
    os.truncate("run/step-00000002/model.safetensors", 500)
    told = "truncated: 500 bytes, .*the one before is step-00000001: remove step-00000002"
    refused(cli("generate", "run"), told)
    refused(cli("train", "--out", "run", "--resume"), told)
    assert cli("generate", "run/step-00000001", "--bytes", "1")[0] == 0


def test_bad_generation_options_are_one_line(cli, book):
    cli("train", book, "--out", "run", "--steps", "1", *RUN)
    refused(cli("generate", "run", "--temperature", "-1"), "temperature: expected a number >= 0")
    refused(cli("generate", "run", "--top-k", "0"), "top_k: expected a whole number >= 1, got 0")
    refused(
        cli("generate", "run", "--prompt", "a", "--prompt-file", "b"),
        "prompt: expected --prompt or",
    )


def test_nan_is_one_line_and_says_what_to_try(cli, book):
    result = cli("train", book, "--out", "run", "--lr", "1e30", "--warmup", "0", *RUN)
    refused(result, r"stopped at step \d+ .*is not finite|the loss is (nan|inf)")
    assert "Try a smaller lr (now 1e+30)" in result[2]
    assert list(Path("run").glob("step-*")) == []


@pytest.mark.parametrize(("name", "expected"), [("SIGINT", 130), ("SIGTERM", 0), ("SIGHUP", 0)])
def test_signal_saves_and_tells_how_to_go_on(cli, book, monkeypatch, name, expected):
    from nestling.train import Run

    step = Run.step

    def interrupted(self):
        if self.steps == 1:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self)

    monkeypatch.setattr(Run, "step", interrupted)
    code, out, err = cli("train", book, "--out", "run", "--steps", "9", *RUN)
    assert (code, err) == (expected, "")
    assert f"{name}: saved and stopped at step 2" in out
    assert out.endswith("to go on: nestling train --out run --resume\n")
    assert read("run").step == 2


def test_traceback_on_request(cli, monkeypatch):
    monkeypatch.setenv("NESTLING_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["nestling", "train"])
    with pytest.raises(ValueError, match="TEXTS: expected"):
        main()


def test_demo_passes_its_options_on(cli, monkeypatch):
    demo = pytest.importorskip("nestling.demo")
    seen = []
    monkeypatch.setattr(demo, "main", lambda texts, **options: seen.append((texts, options)))
    assert cli("demo", "--text", "a.txt", "b.txt", "c.txt", "--short", "--seed", "4")[0] == 0
    assert cli("demo", "--out", "there")[0] == 0
    assert seen == [
        (
            [Path("a.txt"), Path("b.txt"), Path("c.txt")],
            {"out": Path("nestling-demo"), "seed": 4, "short": True},
        ),
        ([], {"out": Path("there"), "seed": 0, "short": False}),
    ]
