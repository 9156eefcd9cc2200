"""A run over a stream: killed anywhere it goes on to the bit; a learner is told nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch import nn

from nestling.continual.protocol import Batch, Cost, Experience
from nestling.continual.record import Record
from nestling.continual.run import Probes, Progress, differences, run, total_batches
from nestling.continual.scoring import error_rate, error_rate_within_task
from nestling.continual.sources import by_class
from nestling.continual.strategies import Sequential
from nestling.continual.stream import Stream, together
from nestling.levels import Level
from nestling.optim import adamw

GROUPS = [(0, 1), (2, 3), (4,)]


def data(seed: int, items: int = 35) -> list[Experience]:
    """Five noisy corners of a cube, in three groups."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(items) % 5
    corners = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    return by_class(
        corners[labels] + 0.7 * torch.randn(items, 6, generator=generator), labels, GROUPS
    )


def stream(**more) -> Stream:
    return Stream(data(1), batch=4, seed=3, passes=2, **more)


TEST = data(2)


def learner(seed: int = 0, lr: float = 0.05, width: int = 8) -> Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 5))
    # The slow level holds unfinished gradients at most moments: they must survive a kill too.
    levels = [
        (Level(1), {n: p for n, p in model.named_parameters() if n.startswith("3")}),
        (Level(7), {n: p for n, p in model.named_parameters() if n.startswith("0")}),
    ]
    return Sequential(model, lambda named: adamw(named, lr=lr), levels=levels)


class Killed(BaseException):
    """As a signal would."""


class Mortal(Sequential):
    """Dies while it learns batch ``last_words``."""

    last_words = -1
    learned = 0

    def observe(self, batch: Batch) -> float:
        loss = super().observe(batch)
        if self.learned == self.last_words:
            raise Killed
        self.learned += 1
        return loss


def same(one: Record, other: Record) -> bool:
    """Equal but for the time it took."""
    return replace(one, seconds=0.0) == replace(other, seconds=0.0)


def test_rows_curve_and_cost():
    one = learner()
    record = run(one, stream(), TEST, score=error_rate_of_rows)
    assert record.finished
    assert record.names == record.phases == ("classes 1", "classes 2", "classes 3")
    assert len(record.R) == 4
    assert all(len(row) == 3 for row in record.R)
    assert len(record.online) == total_batches(stream()) == 2 * (4 + 4 + 2)
    assert sum(count for _, count in record.online) == 70
    assert record.costs[0] == Cost()
    assert [cost.backward for cost in record.costs] == [0, 28, 56, 70]
    assert record.R[-1] == tuple(error_rate_of_rows(one, experience) for experience in TEST)
    assert record.unit == "error_rate_of_rows"
    assert run(spy(), stream(), TEST).unit == "error rate"
    assert record.online_unit == "nats"
    assert [probe.losses for probe in record.probes] == list(record.R)
    assert [probe.seen for probe in record.probes] == list(record.seen) == [0, 28, 56, 70]
    assert set(record.metrics()) == {
        "final_average", "average_incremental", "plasticity", "forgetting", "backward_transfer",
        "forward_transfer", "online_average",
    }  # fmt: skip
    assert "intransigence" in record.metrics(joint=[0.1, 0.1, 0.1])
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize("at", range(20))
def test_killed_at_any_batch_it_goes_on_to_the_bit(tmp_path, at):
    whole = learner()
    torch.manual_seed(11)
    expected = run(whole, stream(), TEST)

    killed = learner()
    killed.__class__ = Mortal
    killed.last_words = at
    torch.manual_seed(11)
    with pytest.raises(Killed):
        run(killed, stream(), TEST, folder=tmp_path, every=3)
    again = learner()
    again.__class__ = Mortal
    torch.manual_seed(12)  # another process has other random numbers: the saved ones count
    record = run(again, stream(), TEST, folder=tmp_path, every=3)
    assert same(record, expected)
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert again.cost == whole.cost
    assert same(Record.from_json((tmp_path / "record.json").read_text()), expected)


def test_plain_training_forgets_classes_and_joint_training_does_not():
    def plain() -> Sequential:
        torch.manual_seed(0)
        return Sequential(nn.Linear(6, 5), lambda named: adamw(named, lr=0.1))

    apart = run(plain(), Stream(data(1), batch=4, passes=20), TEST)
    joint = run(plain(), Stream([together(data(1))], batch=4, passes=20), TEST)
    assert apart.metrics()["plasticity"] == 0.0
    assert apart.metrics()["final_average"] > 0.3
    assert joint.metrics()["final_average"] < 0.1


def test_a_finished_folder_is_only_read(tmp_path):
    first = learner()
    record = run(first, stream(), TEST, folder=tmp_path)
    again = learner()
    assert run(again, stream(), TEST, folder=tmp_path) == record
    assert again.cost == first.cost
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000016", "step-00000020"]


def test_killed_by_the_system(tmp_path):
    """Another process, SIGKILL, no chance to clean up; then this one goes on."""
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
        import test_stream_run as t
        def die(progress):
            if progress.batches == 13:
                os.kill(os.getpid(), signal.SIGKILL)
        t.torch.manual_seed(0)
        t.run(t.learner(), t.stream(), t.TEST, folder={str(tmp_path)!r}, every=5, on_progress=die)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()[-500:]
    # learner() seeds the random numbers itself, so both runs begin with the same.
    assert same(
        run(learner(), stream(), TEST, folder=tmp_path, every=5), run(learner(), stream(), TEST)
    )


def test_stopped_it_saves_and_goes_on(tmp_path):
    asked = iter([False] * 4 + [True])
    part = run(learner(), stream(), TEST, folder=tmp_path, stop=lambda: next(asked))
    assert not part.finished
    assert len(part.online) == 5
    assert set(part.metrics()) == {"online_average"}
    assert Record.from_json((tmp_path / "record.json").read_text()) == part
    whole = run(learner(), stream(), TEST, folder=tmp_path)
    assert same(whole, run(learner(), stream(), TEST))


class Spy(Sequential):
    """Writes down all that it is told."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.observed: list[Batch] = []
        self.asked: list[torch.Tensor] = []
        self.ended: list[Batch] = []

    def observe(self, *told):
        (batch,) = told
        self.observed.append(batch)
        return super().observe(batch)

    def predict(self, *told):
        (inputs,) = told
        self.asked.append(inputs)
        return super().predict(inputs)

    def end_experience(self, *told):
        (items,) = told
        self.ended.append(items)


def spy() -> Spy:
    torch.manual_seed(0)
    return Spy(nn.Linear(6, 5))


def test_a_learner_is_given_batches_and_inputs_and_never_a_task():
    one = spy()
    run(one, stream(), TEST, score=error_rate_within_task)
    assert all(type(batch) is Batch and set(vars(batch)) == {"inputs", "targets"}
               for batch in one.observed)  # fmt: skip
    assert all(type(inputs) is torch.Tensor and inputs.shape[1:] == (6,) for inputs in one.asked)
    assert [items is experience.items for items, experience in
            zip(one.ended, stream().experiences, strict=True)]  # fmt: skip
    assert len(one.ended) == 3


def test_boundaries_that_are_hidden_are_never_told():
    one = spy()
    told = run(one, stream(boundaries=False), TEST)
    assert one.ended == []
    assert told.R == run(spy(), stream(), TEST).R  # the batches are the same ones


def test_test_data_is_never_learned():
    one = spy()
    run(one, stream(), TEST)
    learned = torch.cat([batch.inputs for batch in one.observed])
    measured = torch.cat([experience.items.inputs for experience in TEST])
    train = torch.cat([experience.items.inputs for experience in data(1)])
    assert not (learned[:, None] == measured[None]).all(-1).any()
    assert sorted(learned.tolist()) == sorted(train.tolist() * 2)


def test_probes_are_on_their_own_sample_and_change_nothing():
    small = [Experience(e.name, e.items.rows(slice(0, 3)), e.classes) for e in TEST]
    one, other = learner(), learner()
    torch.manual_seed(5)
    probed = run(one, stream(), TEST, probes=Probes(every=3, on=small), score=error_rate_of_rows)
    torch.manual_seed(5)
    plain = run(other, stream(), TEST, score=error_rate_of_rows)
    assert probed.R == plain.R
    assert probed.online == plain.online
    places = [p.seen for p in probed.probes]
    assert places == sorted(places)
    assert len(places) == 4 + 6  # four rows; of 3, 6, 9, 12, 15, 18 none is a row's place
    assert probed.probes[0].losses == tuple(error_rate_of_rows(learner(), e) for e in small)


@torch.no_grad()
def error_rate_of_rows(learner, experience) -> float:
    """Without the dropout, so that measuring draws no random numbers."""
    learner.model.eval()
    found = error_rate(learner, experience)
    learner.model.train()
    return found


def test_online_can_be_bits_or_a_score():
    nats = run(learner(), stream(), TEST, score=error_rate_of_rows)
    bits = run(learner(), stream(), TEST, score=error_rate_of_rows, online="bits")
    assert bits.online_unit == "bits"
    for (a, _), (b, _) in zip(nats.online, bits.online, strict=True):
        assert b == pytest.approx(a / 0.6931471805599453)
    rate = run(learner(), stream(), TEST, score=error_rate_of_rows, online=error_rate_of_rows)
    assert rate.R == nats.R
    assert {loss * count for loss, count in rate.online} <= {0.0, 1.0, 2.0, 3.0, 4.0}


def test_joint_training_has_one_phase_and_all_columns():
    record = run(learner(), Stream([together(data(1))], batch=4), TEST)
    assert len(record.R) == 2
    assert set(record.metrics()) == {"final_average", "online_average"}
    assert record.metrics()["final_average"] == pytest.approx(sum(record.R[-1]) / 3)


def test_progress_tells_every_batch_and_every_row():
    heard: list[Progress] = []
    record = run(learner(), stream(), TEST, on_progress=heard.append)
    assert [p.row for p in heard if p.row] == list(record.R)
    batches = [p for p in heard if p.row is None]
    assert [p.batches for p in batches] == list(range(1, 21))
    assert {p.total for p in heard} == {20}
    assert [p.name for p in heard if p.row] == [
        "classes 1", "classes 1", "classes 2", "classes 3",
    ]  # fmt: skip
    assert [p.loss for p in batches] == [loss for loss, _ in record.online]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda: {"stream": Stream(data(1), batch=5, seed=3, passes=2)}, "batch is 5, it was 4"),
        (lambda: {"stream": Stream(data(4), batch=4, seed=3, passes=2)}, "stream.content"),
        (lambda: {"stream": stream(boundaries=False)}, "stream.boundaries is False"),
        (lambda: {"test": data(6)}, "test.content"),
        (lambda: {"learner": learner(lr=0.1)}, "lr is 0.1, it was 0.05"),
        (lambda: {"learner": learner(width=9)}, r"0.weight is '\(9, 6\)"),
        (lambda: {"learner": spy()}, "learner.kind is 'Spy', it was 'Sequential'"),
        (lambda: {"score": error_rate_within_task}, "score is 'error_rate_within_task'"),
        (lambda: {"settings": {"size": "small"}}, r"settings.size is 'small', it was 'tiny'"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_name(tmp_path, change, named):
    usual = {"learner": learner(), "stream": stream(), "test": TEST, "settings": {"size": "tiny"}}
    asked = iter([True])
    run(**usual, folder=tmp_path, stop=lambda: next(asked))
    before = sorted(p.name for p in tmp_path.iterdir())
    values = {**usual, "learner": learner(), "stream": stream(), **change()}
    with pytest.raises(ValueError, match=named):
        run(**values, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_one_process_for_each_folder(tmp_path):
    def again(_: Progress) -> None:
        run(learner(), stream(), TEST, folder=tmp_path)

    with pytest.raises(ValueError, match="another process is writing"):
        run(learner(), stream(), TEST, folder=tmp_path, on_progress=again)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"every": 0}, "every: expected at least 1"),
        ({"test": []}, "test: expected at least one"),
        ({"test": TEST[::-1]}, "test: expected 'classes 1' at place 1"),
        ({"probes": Probes(every=0)}, "probes: expected every >= 1"),
        ({"probes": Probes(every=1, on=TEST[:2])}, "probes: expected 3 experiences, got 2"),
        ({"score": lambda learner, experience: float("nan")}, "before learning, the loss on 'cl"),
    ],
)
def test_bad_arguments_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        run(**{"learner": learner(), "stream": stream(), "test": TEST, **change})


def test_a_stream_must_stand_at_its_beginning_and_a_folder_be_one(tmp_path):
    begun = stream()
    begun.next()
    with pytest.raises(ValueError, match="stream: expected it at its beginning"):
        run(learner(), begun, TEST)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is not a directory"):
        run(learner(), stream(), TEST, folder=tmp_path / "file")


def test_records_that_are_none():
    with pytest.raises(ValueError, match="not JSON"):
        Record.from_json("{")
    with pytest.raises(ValueError, match="expected 'format'"):
        Record.from_json("{}")
    with pytest.raises(ValueError, match="schema 2"):
        Record.from_json('{"format": "nestling-record", "schema": 2}')
    with pytest.raises(ValueError, match="damaged"):
        Record.from_json('{"format": "nestling-record", "schema": 1}')


def test_differences_stop_at_four():
    assert len(differences({str(i): i for i in range(9)}, {})) == 4
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == ["a[1].b is 3, it was 2"]
    assert differences({"a": float("nan")}, {"a": float("nan")}) == []
