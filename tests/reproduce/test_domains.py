"""The domain stream on small made-up texts: rows, what is skipped, and the page made of them."""

from __future__ import annotations

import lzma
import random
from functools import partial

import pytest

from nestling.reproduce import domains, returns
from nestling.reproduce.domain_texts import STREAMS
from nestling.reproduce.domain_texts import domains as read_domains
from nestling.reproduce.driver import TARGETS, Request, reproduce
from nestling.reproduce.rows import read

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


def request(data, tmp_path, tasks=("domains-smoke",), **more) -> Request:
    return Request(
        target="streams", data=data, size="smoke", rows=tmp_path / "rows",
        work=tmp_path / "work", page=tmp_path / "page.md", tasks=tasks, **more,
    )  # fmt: skip


@pytest.fixture
def three(monkeypatch):
    """Only the domains that the made-up texts have."""
    for module in (domains, returns):
        part = partial(module.jobs, names=["Python", "German", "C headers"])
        monkeypatch.setattr(module, "jobs", part)


@pytest.mark.usefixtures("three")
def test_rows_and_page(data, tmp_path):
    said: list[str] = []
    reproduce(request(data, tmp_path), said.append)
    rows = read(tmp_path / "rows")
    by_strategy = {row["strategy"]: row for row in rows}
    assert list(by_strategy) == list(domains.STRATEGIES)
    assert {name for name, row in by_strategy.items() if len(row["R"]) == 2} == set(domains.JOINT)
    new = 3 * 2 * domains.BATCH * domains.LENGTH
    assert by_strategy["sequential"]["cost"]["backward"] == new == by_strategy["EWC"]["new"]
    assert by_strategy["replay"]["cost"]["stored_bytes"] > 0
    assert said[0].endswith(f": {len(rows)} rows to make")

    before = (tmp_path / "rows" / "domains-smoke.jsonl").read_bytes()
    reproduce(request(data, tmp_path), said.append)  # everything is there
    assert (tmp_path / "rows" / "domains-smoke.jsonl").read_bytes() == before

    text = (tmp_path / "page.md").read_text()
    assert "## Domain stream" in text
    assert "| Transformer++ | consolidated |" in text
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {
        "domains-curves.png", "domains-scatter.png", "domains-transformer-sequential.png",
        "domains-transformer-consolidated.png",
    }  # fmt: skip


@pytest.mark.usefixtures("three")
def test_only_what_is_asked_for(data, tmp_path):
    asked = request(data, tmp_path, strategies=("sequential",), seeds=(0,))
    reproduce(asked, lambda text: None)
    assert [row["strategy"] for row in read(tmp_path / "rows")] == ["sequential"]
    with pytest.raises(ValueError, match=r"--strategies: expected some of .* got 'best'"):
        reproduce(request(data, tmp_path, strategies=("best",)), lambda text: None)
    with pytest.raises(ValueError, match=r"--data: .* is no folder"):
        reproduce(request(tmp_path / "nowhere", tmp_path), lambda text: None)


@pytest.mark.usefixtures("three")
def test_what_comes_back(data, tmp_path):
    """The learners of the domain stream are taken as they stood at its end, not made again."""
    reproduce(request(data, tmp_path, strategies=("consolidated",)), lambda text: None)
    steps = sorted((tmp_path / "work").rglob("step-*"))
    reproduce(request(data, tmp_path, ("returns-smoke",), strategies=("consolidated",)), print)
    assert sorted((tmp_path / "work").rglob("step-*")) == steps
    [row] = read(tmp_path / "rows" / "returns-smoke.jsonl")
    assert row["phases"] == ["frozen", "written", "read 16", "learned 16"]
    assert row["names"] == ["Python", "German", "C headers"]
    frozen, written, read_on, learned = row["R"]
    assert frozen == written  # this Transformer++ has no memory that is written
    assert len({tuple(frozen), tuple(read_on), tuple(learned)}) == 3
    assert "| Transformer++ | consolidated |" in (tmp_path / "page.md").read_text()


def test_the_command(cli, data, tmp_path):
    code, out, _ = cli("reproduce")
    assert code == 0
    assert "streams: " in out
    code, _, err = cli("reproduce", "fig99", "--data", data)
    assert (code, err) == (2, f"nestling: error: target: expected one of {list(TARGETS)}, "
                              "got 'fig99'\n")  # fmt: skip
    code, _, err = cli("reproduce", "streams", "--data", data, "--size", "huge")
    assert code == 2
    assert "--size: expected one of ['smoke', 'cpu', 'validation'], got 'huge'" in err
