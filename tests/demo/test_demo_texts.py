"""The shipped texts are real, different, and split without overlap."""

from __future__ import annotations

import json
import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest

from nestling.demo import DEFAULT, SHORT, read_texts, shipped
from nestling.demo.texts import TITLES, split

TEXTS = shipped()


def test_what_is_shipped_fits_and_suffices():
    folder = resources.files("nestling.demo.texts")
    packed = {p.name: len(p.read_bytes()) for p in folder.iterdir() if p.name.endswith(".gz")}
    assert len(packed) == len(TITLES) == 5
    assert sum(packed.values()) <= 3_000_000
    for name, text in TEXTS:
        size = len(text.encode())
        assert 200_000 <= size <= 600_000, name
        domain = split(name, text, held_out_bytes=DEFAULT.held_out, least_train_bytes=257)
        assert len(domain.held_out) >= 16_384
        # Within a phase no byte is seen more than about once.
        assert DEFAULT.tokens_per_domain <= 1.5 * len(domain.train)


def test_sources_name_every_file_and_its_rights():
    sources = (resources.files("nestling.demo.texts") / "SOURCES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)\.txt\.gz` \|.*\| (.+) \|$", sources, flags=re.M)
    assert {name for name, _ in rows} == set(TITLES)
    for name, rights in rows:
        assert re.search("public domain|MIT|PSF-2.0|Unicode licence", rights), name
    for licence in re.findall(r"`(LICENSE-[\w.]+)`", sources):
        assert len((resources.files("nestling.demo.texts") / licence).read_text("utf-8")) > 1000


def test_domains_differ_in_their_bytes():
    def histogram(text: str) -> np.ndarray:
        counts = np.bincount(np.frombuffer(text.encode(), dtype=np.uint8), minlength=256) + 1e-3
        return counts / counts.sum()

    histograms = {name: histogram(text) for name, text in TEXTS}
    for (a, p), (b, q) in combinations(histograms.items(), 2):
        m = (p + q) / 2
        bits = 0.5 * float((p * np.log2(p / m)).sum() + (q * np.log2(q / m)).sum())
        assert bits > 0.05, (a, b)  # Jensen-Shannon: 0 for equal, 1 for disjoint alphabets


@pytest.mark.parametrize(("name", "text"), TEXTS, ids=list(TITLES))
def test_no_held_out_passage_was_trained_on(name, text):
    domain = split(name, text, held_out_bytes=DEFAULT.held_out, least_train_bytes=257)
    assert domain.train + domain.held_out == text.encode()
    domain.held_out.decode()  # cut between two characters
    passages = [domain.held_out[at : at + 128] for at in range(0, len(domain.held_out) - 128, 128)]
    copied = sum(passage in domain.train for passage in passages)
    assert copied <= 0.01 * len(passages)


def test_split_by_position():
    domain = split("x", "abcdefghij" * 100, held_out_bytes=64, least_train_bytes=10)
    assert (len(domain.train), len(domain.held_out)) == (936, 64)
    # A short text holds out a tenth, and never half a character.
    domain = split("x", "é" * 105, held_out_bytes=64, least_train_bytes=10)
    assert (len(domain.train), domain.held_out.decode()) == (190, "é" * 10)


def test_a_text_too_short_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'tiny' has 30 bytes, expected at least 1,419"):
        split("tiny", "0123456789" * 3, held_out_bytes=4096, least_train_bytes=129)
    with pytest.raises(ValueError, match="'thin' has 1,000 bytes"):
        split("thin", "0123456789" * 100, held_out_bytes=4096, least_train_bytes=129)


def test_user_files(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b" / "a.txt").write_text("two", encoding="utf-8")
    rows = [{"text": "three"}, {"text": "four"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    paths = [tmp_path / "a.txt", tmp_path / "b" / "a.txt", tmp_path / "b", tmp_path / "c.jsonl"]
    assert read_texts(paths) == [
        ("a", "one"), ("a-2", "two"), ("b", "two"), ("c", "three\n\nfour")
    ]  # fmt: skip
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"bad\.txt.*offset 3"):
        read_texts([tmp_path / "bad.txt"])
    with pytest.raises(ValueError, match="missing"):
        read_texts([tmp_path / "missing.txt"])


def test_budgets_are_consistent():
    for budget in (DEFAULT, SHORT):
        assert budget.tokens_per_domain == budget.steps * budget.batch * budget.length
        # Every level moves within one domain, and more than once over the five.
        assert budget.periods[-1] <= budget.tokens_per_domain
