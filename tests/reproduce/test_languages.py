"""Languages one after the other and translation, on small made-up verses."""

from __future__ import annotations

import lzma
import random

import pytest
import torch

from nestling.continual.protocol import IGNORED
from nestling.continual.strategies.averaged import Averaged
from nestling.continual.strategies.chained import Chained
from nestling.reproduce import languages, translation
from nestling.reproduce.subwords import (
    BETWEEN,
    START,
    Subwords,
    chrf_loss,
    experience,
    references,
    translations,
)
from nestling.reproduce.translation import ALONE, FIRST, SECOND
from nestling.reproduce.verses import LANGUAGES, STREAMS, Pair, pairs, part_of, verses, with_gaps
from nestling.reproduce.verses import languages as read_languages

WORDS = ["in", "the", "beginning", "was", "light", "and", "water", "man", "said"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A book of 400 verses in every language; the words of each are English ones with an end."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(0)
    (folder / "bible_parallel").mkdir()
    book = [[draw.choice(WORDS) for _ in range(draw.randint(4, 12))] for _ in range(400)]
    for code in LANGUAGES.values():
        end = "" if code == "eng" else code[0]
        lines = (f"MAT.1.{n}\t{' '.join(word + end for word in line)}"
                 for n, line in enumerate(book))  # fmt: skip
        with lzma.open(folder / f"bible_parallel/{code}.tsv.xz", "wt", encoding="utf8") as handle:
            handle.write("\n".join(lines) + "\n")
    return folder


def test_no_language_is_tested_on_what_another_was_trained_on(data):
    found = {name: verses(data, name) for name in STREAMS["test"]}
    parts = {verse: part_of(verse) for verse in found["English"]}
    assert set(parts.values()) == {"train", "validation", "test"}
    texts = read_languages(data, STREAMS["test"], rows=20, held_out=3, length=32)
    for experiences in (texts.train, texts.test):
        assert [e.name for e in experiences] == list(STREAMS["test"])
    for name, measured in zip(STREAMS["test"], texts.test, strict=True):
        held_out = "\n".join(t for v, t in found[name].items() if parts[v] == "test")
        first = bytes(measured.items.inputs[0].tolist()).decode()
        assert held_out.startswith(first)
    assert not set(STREAMS["test"]) & set(STREAMS["validation"])


def test_pairs(data):
    english = verses(data, "English")
    learned = {english[v] for v in english if part_of(v) == "train"}
    for part in ("train", "test"):
        found = pairs(data, "Manx", part, longest=60)
        assert all(max(len(p.source), len(p.target)) <= 60 for p in found)
        assert all([w + "g" for w in p.target.split()] == p.source.split() for p in found)
        assert all((p.target in learned) == (part == "train") for p in found)
    gaps = with_gaps(data, longest=200)
    assert {p.target for p in gaps} == learned
    left, whole = (sum(len(t.split()) for t in side) for side in
                   ([p.source for p in gaps], [p.target for p in gaps]))  # fmt: skip
    assert 0.7 < left / whole < 0.9
    assert gaps == with_gaps(data, longest=200)


def test_what_cannot_be_read_is_named(data, tmp_path):
    with pytest.raises(ValueError, match="'Latin'"):
        verses(data, "Latin")
    with pytest.raises(ValueError, match=r"eng.tsv.xz is not there"):
        verses(tmp_path, "English")
    with pytest.raises(ValueError, match="no verse has at most 3 bytes"):
        pairs(data, "Manx", "train", longest=3)


def test_rows_of_languages(data, tmp_path):
    jobs = [job for job in languages.jobs(data, size="smoke") if job.strategy in
            ("3 extra levels", "2 slow levels", "joint")]  # fmt: skip
    assert [job.joint for job in jobs] == [False, False, True]
    for job in jobs:
        record = job.make(tmp_path / job.name, lambda progress: None)
        assert record.names == STREAMS["test"]
        assert record.finished
        assert len(record.R) == (2 if job.joint else 6)
        assert record.R[0] != record.R[-1]


def test_extra_levels_take_no_parameters_and_have_their_clocks():
    sizes, periods = [], []
    for extra in range(4):
        model = languages.model_of("transformer", 0, extra=extra)
        sizes.append(sum(p.numel() for p in model.parameters()))
        levels = model.parameter_levels().values()
        periods.append(sorted({level.period for level in levels if level.period is not None}))
    assert max(sizes) < 1.01 * min(sizes)
    assert periods == [[1], [1, 4096], [1, 4096, 16384], [1, 4096, 16384, 65536]]


def test_strategies_are_what_they_say(data):
    model = languages.model_of("transformer", 0)
    made = {name: build(model, settings, 0) for name, (build, settings) in
            languages.STRATEGIES.items()}  # fmt: skip
    assert isinstance(made["averaged"], Averaged)
    for name, levels in languages.SLOW.items():
        learner = made[name]
        assert isinstance(learner, Chained)
        assert len(learner.slow) == levels
    assert {job.seed for job in languages.jobs(data, size="cpu")} == {0, 1, 2}


class Writer(torch.nn.Module):
    """Writes the source once more, then ends: the state is what has been read."""

    def read_on(self, ids, state=None):
        seen = ids if state is None else torch.cat([state, ids], dim=1)
        logits = torch.zeros(len(seen), 300)
        for row, ids_ in enumerate(seen.tolist()):
            between = ids_.index(BETWEEN)
            source = [i for i in ids_[:between] if i != START]
            written = len(ids_) - between - 1
            logits[row, source[written] if written < len(source) else START] = 1.0
        return logits, seen


def test_translations_of_sources_of_any_length():
    pieces = Subwords(["one two three four"] * 9, 300)
    found = [Pair("one two", "two one"), Pair("four", "three four one"), Pair("né", "two")]
    items = experience("a", found, pieces, length=24, only_target=True).items
    assert references(items, pieces) == [pair.target for pair in found]
    written = translations(Writer(), items, pieces, most=9)
    assert written == [pair.source for pair in found]
    assert chrf_loss(written, [pair.source for pair in found]) == pytest.approx(0.0)
    assert chrf_loss(written, [pair.target for pair in found]) > 20


def test_rows_to_learn_count_both_sides_and_rows_to_measure_one():
    pieces = Subwords(["one two"] * 9, 300)
    both = experience("a", [Pair("one", "two")], pieces, length=12).items
    target = experience("a", [Pair("one", "two")], pieces, length=12, only_target=True).items
    source, wanted = pieces.encode("one"), pieces.encode("two")
    kept = both.targets[both.targets != IGNORED].tolist()
    assert kept == [*source, BETWEEN, *wanted, START]
    assert target.targets[target.targets != IGNORED].tolist() == [*wanted, START]
    assert torch.equal(both.inputs, target.inputs)


def test_rows_of_translation(data, tmp_path):
    wanted = ("sequential", "sequential" + ALONE, "3 slow levels", "2 extra levels")
    jobs = [job for job in translation.jobs(data, size="smoke") if job.strategy in wanted]
    assert len(jobs) == 2 * len(wanted)
    records = {}
    for job in jobs:
        records[job.task, job.strategy] = job.make(tmp_path / job.name, lambda progress: None)
    for (task, strategy), record in records.items():
        alone = strategy.endswith(ALONE)
        assert record.names == ((SECOND,) if alone else (FIRST, SECOND))
        assert len(record.R) == len(record.names) + 1
        losses = [loss for row in record.R for loss in row]
        assert all(50 < loss <= 100 if "chrf" in task else 0 < loss < 9 for loss in losses)
    # The English model is the same for all, and was learned once.
    before = {r.R[0][-1] for (task, _), r in records.items() if task == "translation-smoke"}
    assert max(before) - min(before) < 1e-6
    assert len(list(tmp_path.glob("english-*"))) == 1


def row(strategy: str, seed: int, R: list[list[float]], *, joint: bool = False) -> dict:
    return {"strategy": strategy, "seed": seed, "R": R, "unit": translation.CHRF, "joint": joint}


def test_table_holds_both_languages_against_what_each_was_alone():
    groups = {
        ("m", "sequential"): [
            row("sequential", 0, [[90.0, 90.0], [80.0, 89.0], [86.0, 78.0]]),
            row("sequential", 1, [[90.0, 90.0], [80.0, 89.0], [84.0, 78.0]]),
        ],
        ("m", "sequential" + ALONE): [row("sequential" + ALONE, 0, [[90.0], [70.0]])],
        ("m", translation.FLOOR): [row(translation.FLOOR, 0, [[90.0, 90.0]] * 3)],
    }
    lines = translation.table(groups).splitlines()
    assert len(lines) == 4  # what was learned alone has no line of its own
    assert lines[2] == (
        "| sequential | 20.000 ± 0.000 | 15.000 ± 1.000 | 75% "
        "| 30.000 ± 0.000 | 22.000 ± 0.000 | 73% | 0, 1 |"
    )


def test_what_is_no_better_than_the_floor_cannot_be_kept():
    groups = {
        ("m", "sequential"): [row("sequential", 0, [[90.0, 90.0], [80.0, 89.0], [86.0, 78.0]])],
        ("m", translation.FLOOR): [row(translation.FLOOR, 0, [[90.0, 90.0]] + [[80.0, 80.0]] * 2)],
    }
    assert translation.table(groups).splitlines()[2].split(" | ")[3] == "-"


def test_only_what_is_known_to_write_is_asked_to():
    with pytest.raises(ValueError, match="Averaged does not write"):
        translation.answering(
            languages.averaged(languages.model_of("transformer", 0), {"lr": 1.0}, 0)
        )
