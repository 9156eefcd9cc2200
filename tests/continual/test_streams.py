"""Streams: every item once, no class early, resumed to the bit, and bad input by its name."""

from __future__ import annotations

import inspect

import pytest
import torch

from nestling.continual.protocol import Batch, Experience, Learner, Predictor
from nestling.continual.sources import (
    by_class,
    class_groups,
    label_ids,
    permuted,
    read_labelled,
    text_experience,
    text_experiences,
)
from nestling.continual.stream import Cursor, Stream, shuffled, together


def labelled(items: int = 60, classes: int = 6):
    inputs = torch.arange(items * 2).view(items, 2)
    return inputs, torch.arange(items) % classes


def experiences(seed: int = 3):
    inputs, labels = labelled()
    return by_class(inputs, labels, class_groups(6, [1, 2, 3], seed=seed))


def test_no_item_twice_none_missing_and_no_class_early():
    parts = experiences()
    stream = Stream(parts, batch=7, seed=5)
    seen: list[int] = []
    introduced: set[int] = set()
    for moment in stream:
        introduced |= set(parts[moment.experience].classes)
        assert set(moment.batch.targets.tolist()) <= introduced
        seen += moment.batch.inputs[:, 0].tolist()
    assert len(seen) == 60
    assert sorted(seen) == list(range(0, 120, 2))
    assert introduced == set(range(6))


def test_every_pass_gives_every_item_once_in_another_order():
    stream = Stream(experiences()[:1], batch=4, passes=3)
    rows = [row for moment in stream for row in moment.batch.inputs[:, 0].tolist()]
    first, second, third = rows[:10], rows[10:20], rows[20:]
    assert sorted(first) == sorted(second) == sorted(third)
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


def test_last_is_said_once_for_each_experience():
    moments = list(Stream(experiences(), batch=7, passes=2))
    assert [m.experience for m in moments if m.last] == [0, 1, 2]
    assert moments[-1].last


def test_resumed_anywhere_it_gives_the_same_batches():
    whole = Stream(experiences(), batch=7, seed=5, passes=2)
    cursors, batches = [whole.cursor], []
    for moment in whole:
        batches.append(moment)
        cursors.append(whole.cursor)
    for index in range(len(batches)):
        again = Stream(experiences(), batch=7, seed=5, passes=2)
        again.seek(cursors[index])
        rest = list(again)
        assert len(rest) == len(batches) - index
        for old, new in zip(batches[index:], rest, strict=True):
            assert torch.equal(old.batch.inputs, new.batch.inputs)
            assert torch.equal(old.batch.targets, new.batch.targets)
            assert (old.experience, old.last) == (new.experience, new.last)
    again.seek(cursors[-1])
    assert again.over


def test_order_is_a_function_of_seed_experience_and_pass():
    drawn = {tuple(shuffled(20, s, e, p).tolist()) for s in (0, 1) for e in (0, 1) for p in (0, 1)}
    assert len(drawn) == 8
    assert all(sorted(order) == list(range(20)) for order in drawn)


def test_fingerprint_tells_streams_apart():
    base = Stream(experiences(), batch=7).fingerprint()
    assert base == Stream(experiences(), batch=7).fingerprint()
    assert base != Stream(experiences(), batch=8).fingerprint()
    assert base != Stream(experiences(), batch=7, seed=1).fingerprint()
    assert base != Stream(experiences(seed=4), batch=7).fingerprint()


def test_a_learner_has_no_way_to_be_told_the_task():
    for kind in (Learner, Predictor):
        assert list(inspect.signature(kind.predict).parameters) == ["self", "inputs"]
    assert set(Batch.__dataclass_fields__) == {"inputs", "targets"}


def test_class_groups_come_from_the_seed_and_cover_all_classes():
    groups = class_groups(10, [4, 6], seed=1)
    assert [len(g) for g in groups] == [4, 6]
    assert sorted(c for g in groups for c in g) == list(range(10))
    assert groups == class_groups(10, [4, 6], seed=1) != class_groups(10, [4, 6], seed=2)


def test_text_is_cut_without_overlap(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(10)))
    (tmp_path / "b.txt").write_bytes(b"hello world")
    a, b = text_experiences([tmp_path / "a.txt", tmp_path / "b.txt"], length=4)
    assert a.items.inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert a.items.targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert bytes(b.items.inputs.flatten().tolist()) == b"hello wo"
    assert a.classes is None


def test_permuted_keeps_the_pixels_and_is_the_same_for_train_and_test():
    images = torch.rand(3, 4, 4)
    first, second = permuted(images, torch.tensor([0, 1, 2]), tasks=2, seed=0)
    assert torch.equal(first.items.inputs, images.flatten(1))
    assert not torch.equal(second.items.inputs, first.items.inputs)
    assert torch.equal(second.items.inputs.sort(1)[0], first.items.inputs.sort(1)[0])
    test = permuted(images[:1], torch.tensor([0]), tasks=2, seed=0)[1]
    assert torch.equal(test.items.inputs, second.items.inputs[:1])


def test_together_is_all_items_in_order():
    parts = experiences()
    whole = together(parts)
    assert torch.equal(whole.items.inputs, torch.cat([p.items.inputs for p in parts]))
    assert whole.classes == tuple(c for p in parts for c in p.classes)


def test_labelled_files(tmp_path):
    (tmp_path / "a.csv").write_text('text,label\nhello,x\n"a, b",y\n')
    assert read_labelled(tmp_path / "a.csv") == (["hello", "a, b"], ["x", "y"])
    (tmp_path / "a.jsonl").write_text('{"t": "hi", "l": 3}\n\n{"t": "yo", "l": 4}\n')
    assert read_labelled(tmp_path / "a.jsonl", text="t", label="l") == (["hi", "yo"], ["3", "4"])


def test_bad_input_is_named(tmp_path):
    inputs, labels = labelled()
    with pytest.raises(ValueError, match="unseen label 5"):
        by_class(inputs, labels, [(0, 1, 2), (3, 4)])
    with pytest.raises(ValueError, match="class 1 comes twice"):
        by_class(inputs, labels, [(0, 1, 2), (1, 3, 4, 5)])
    with pytest.raises(ValueError, match=r"'classes 2'.*at least one item, got none"):
        by_class(inputs, labels, [tuple(range(6)), (6,)])
    with pytest.raises(ValueError, match="label 5 is not among its classes"):
        Experience("odd", Batch(inputs, labels), classes=(0, 1, 2, 3, 4))
    with pytest.raises(ValueError, match="unseen label 'z'"):
        label_ids(["a", "z"], {"a": 0})
    with pytest.raises(ValueError, match="sum 6, got"):
        class_groups(6, [2, 2], seed=0)
    with pytest.raises(ValueError, match="shorter than one sequence"):
        text_experience("short", torch.arange(4), length=4)
    with pytest.raises(ValueError, match="one for each of 60 inputs, got 59"):
        Batch(inputs, labels[1:])
    (tmp_path / "a.txt").write_text("same text")
    (tmp_path / "b.txt").write_text("same text")
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(ValueError, match=r"b\.txt: duplicate file: the same content as .*a\.txt"):
        text_experiences([tmp_path / "a.txt", tmp_path / "b.txt"], length=2)
    with pytest.raises(ValueError, match=r"empty\.txt: expected text"):
        text_experiences([tmp_path / "empty.txt"], length=2)
    (tmp_path / "c.csv").write_text("text,intent\nhello,x\n")
    with pytest.raises(ValueError, match=r"c\.csv:2: missing column 'label'.*'intent'"):
        read_labelled(tmp_path / "c.csv")


def test_a_bad_stream_is_named():
    part = experiences()[0]
    with pytest.raises(ValueError, match="'classes 1' twice"):
        Stream([part, part], batch=2)
    other = Experience("other", part.items, part.classes)
    with pytest.raises(ValueError, match=r"'other': class .* was introduced by 'classes 1'"):
        Stream([part, other], batch=2)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        Stream([part], batch=0)
    with pytest.raises(ValueError, match="experiences: expected at least one"):
        Stream([], batch=1)
    with pytest.raises(ValueError, match="no place"):
        Stream([part], batch=1).seek(Cursor(0, 0, 10))
