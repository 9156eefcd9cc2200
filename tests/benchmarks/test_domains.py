"""The domain stream on small made-up texts: rows, what is skipped, and the page made of them."""

from __future__ import annotations

import lzma
import random

import pytest

from benchmarks import domains, stream_page
from benchmarks.domains_data import STREAMS
from benchmarks.domains_data import domains as read_domains
from benchmarks.stream_rows import read

FILES = {
    "code/python311_stdlib.py.txt.xz": "def ",
    "debian_reference/de.txt.xz": "der ",
    "code/c_headers_5MB.txt.xz": "#define ",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    for name, word in FILES.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        text = "".join(word + draw.choice("abcdef") + "\n" for _ in range(30_000))
        with lzma.open(file, "wt", encoding="utf8") as handle:
            handle.write(text)
    return folder


def test_experiences(data):
    found = read_domains(data, "test", rows=10, held_out=3, length=64, names=["German", "Python"])
    assert [e.name for e in found.train] == ["German", "Python"] == [e.name for e in found.test]
    assert found.train[0].items.inputs.shape == (10, 64)
    assert found.test[1].items.targets.shape == (3, 64)
    assert not set(STREAMS["test"]) & set(STREAMS["validation"])


def test_errors(data):
    with pytest.raises(ValueError, match="stream"):
        read_domains(data, "x", rows=1, held_out=1, length=8)
    with pytest.raises(ValueError, match="'Latin'"):
        read_domains(data, "test", rows=1, held_out=1, length=8, names=["Latin"])
    with pytest.raises(ValueError, match="rows, not 10000000"):
        read_domains(data, "test", rows=10**7, held_out=1, length=8, names=["German"])


def test_rows_and_page(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(domains, "HELD_OUT", 4)
    out = tmp_path / "domains.jsonl"
    arguments = [
        "--data", str(data), "--steps", "2", "--seeds", "0", "--models", "transformer",
        "--domains", "Python", "German", "C headers", "--out", str(out),
        "--work", str(tmp_path / "work"),
        "--strategies", "sequential", "EWC", "replay", "DER++", "LwF", "consolidated", "joint",
    ]  # fmt: skip
    domains.main(arguments)
    rows = read(out)
    assert [row["strategy"] for row in rows] == arguments[-7:]
    assert [len(row["R"]) for row in rows] == [4] * 6 + [2]
    assert rows[0]["cost"]["backward"] == 3 * 2 * domains.BATCH * domains.LENGTH
    assert rows[2]["cost"]["stored_bytes"] > 0
    domains.main(arguments)  # everything is there
    assert read(out) == rows

    page = tmp_path / "continual.md"
    page.write_text("Before\n<!-- rows: domains -->\n<!-- end of rows: domains -->\nAfter\n")
    stream_page.main(["--rows", str(out), "--page", str(page)])
    text = page.read_text()
    assert text.startswith("Before\n")
    assert text.endswith("After\n")
    assert "| Transformer++ | consolidated |" in text
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert {
        "domains-curves.png",
        "domains-scatter.png",
        "domains-transformer-sequential.png",
    } <= drawn

    rows[0]["seed"] = 0
    with pytest.raises(ValueError, match="a seed twice"):
        stream_page.grouped([*rows, rows[0]])
