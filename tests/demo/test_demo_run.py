"""The demo in miniature: what it measures is true, the same twice, and there after a kill."""

from __future__ import annotations

import io
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from nestling.data import TextStream
from nestling.demo import DEFAULT, SHORT, DemoBudget, run_demo, show
from nestling.demo.learner import build_learners
from nestling.demo.measure import byte_ids, losses, mean, sequences
from nestling.demo.progress import Progress
from nestling.demo.texts import split
from nestling.levels import Level
from nestling.models import parameter_count
from nestling.optim import NonFiniteError
from nestling.report import read_results

BUDGET = DemoBudget(
    width=16, heads=2, layers=1, periods=(1, 64, 192), batch=2, length=32, steps=6, warmup=2,
    lr=1e-2, held_out=512, measured=128, probed=64, probes=2, reading=64, passages=2,
)  # fmt: skip
TEXTS = [
    ("counting", "one two three four five six seven eight nine ten. " * 60),
    ("ticks", "+-+--+---+----+-----+" * 150),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return run_demo(TEXTS, out=out, budget=BUDGET, seed=1), out


def values(results):
    return [(r.model, r.metric, r.phase, r.domain, r.part, r.step, r.value) for r in results.rows]


def test_the_matrix_is_whole_and_learning_shows_in_it(run):
    results, _ = run
    assert (results.domains, results.models) == (["counting", "ticks"], ["hope", "transformer"])
    assert (results.finished, results.phases_done()) == (True, 2)
    for model in results.models:
        R = results.matrix(model)
        assert R[0] == pytest.approx([8.0, 8.0], abs=0.3)
        assert R[1][0] < 7.0
        assert R[2][1] < 7.3  # an average of six steps lags behind them


def test_both_models_get_equal_parameters_tokens_and_batches(run):
    results, _ = run
    sizes = [m["parameters"] for m in results.run["models"]]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01
    for model in results.models:
        steps = results.select("train_bpb", model=model)
        assert [s.step for s in steps] == [*range(1, 13)]
        assert steps[-1].tokens == 2 * BUDGET.tokens_per_domain == 768
        assert [s.domain for s in steps] == ["counting"] * 6 + ["ticks"] * 6


def test_the_default_models_are_of_equal_size():
    for budget in (DEFAULT, SHORT):
        hope, transformer = (
            parameter_count(x.model.config) for x in build_learners(budget, seed=0)
        )
        assert abs(hope / transformer - 1) < 0.01


def test_the_matrix_is_what_the_held_out_tail_says(run):
    """Replayed without the runner: the same weights, the same tail, the same number."""
    results, _ = run
    for learner in build_learners(BUDGET, seed=1):
        domains = [split(n, t, held_out_bytes=512, least_train_bytes=33) for n, t in TEXTS]
        assert domains[0].held_out == TEXTS[0][1].encode()[-300:]
        for domain in domains:
            stream = TextStream(byte_ids(domain.train), batch=2, length=32, seed=1)
            list(learner.learn(stream, 6))
        rows = sequences(domains[0].held_out, length=32, most=128)
        assert len(rows) == 4
        expected = mean(losses(learner.answers, rows))
        got = results.select("held_out_bpb", model=learner.name, phase=2, domain="counting")[0]
        assert (got.value, got.error) == pytest.approx((expected.value, expected.error), rel=1e-9)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(run, tmp_path):
    results, _ = run
    again = run_demo(TEXTS, out=tmp_path / "a", budget=BUDGET, seed=1)
    assert values(again) == values(results)
    other = run_demo(TEXTS, out=tmp_path / "b", budget=BUDGET, seed=2)
    assert values(other) != values(results)


def test_levels_move_at_their_period_and_the_memories_are_alive(run):
    results, _ = run
    # 64 tokens a step: every step, every step as well, every third step.
    for phase in (1, 2):
        moved = results.select("level_updates", model="hope", phase=phase)
        assert {m.part: m.value for m in moved} == {"1": 6.0, "64": 6.0, "192": 2.0}
        written = results.select("memory_written", phase=phase)
        assert {m.model for m in written} == {"hope"}
        assert len(written) == 5
        assert all(m.value > 1e-3 for m in written)
    parts = {m.part for m in results.select("weights_written", model="hope")}
    assert parts == {
        "embedding", "sequence layers", "norms", "MLP level, every step", "MLP level, period 64",
        "MLP level, period 192",
    }  # fmt: skip
    assert all(0 < m.value < 10 for m in results.select("weights_written"))


def test_a_level_is_held_until_its_period_is_over():
    hope = build_learners(BUDGET, seed=0)[0]
    stream = TextStream(byte_ids(TEXTS[0][1].encode()), batch=2, length=32)
    hope.remember_weights()
    moved = [step.moved for step in hope.learn(stream, 2)]
    assert moved == [(Level(1), Level(64))] * 2
    change = hope.change_by_part()
    assert change["MLP level, period 192"] == 0.0
    assert change["MLP level, period 64"] > 0.0
    [last] = hope.learn(stream, 1)
    assert last.moved == (Level(1), Level(64), Level(192))
    assert hope.change_by_part()["MLP level, period 192"] > 0.0


def test_warm_up_is_counted_over_the_stream_and_not_per_domain():
    hope = build_learners(BUDGET, seed=0)[0]
    stream = TextStream(byte_ids(TEXTS[0][1].encode()), batch=2, length=32)
    rates = []
    for _ in range(2):  # two domains of three steps
        group = hope.optimizer.optimizers[0].param_groups[0]
        rates += [group["lr"] for _ in hope.learn(stream, 3)]
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2, 1e-2, 1e-2])


def test_the_curves_and_the_long_passages_are_there(run):
    results, _ = run
    for model in results.models:
        probes = results.select("probe_bpb", model=model, domain="ticks")
        assert [p.step for p in probes] == [0, 2, 4, 6, 8, 10, 12]
        reading = results.select("reading_bpb", model=model, domain="ticks")
        assert [r.part for r in reading] == ["0", "32"]


def test_the_report_and_the_tables_tell_the_same_numbers(run):
    results, out = run
    page = (out / "report.html").read_text(encoding="utf-8")
    printed = io.StringIO()
    show(results, Console(file=printed, width=120))
    for model in results.models:
        for i, row in enumerate(results.matrix(model)):
            assert all(f"{value:.3f}" in page for value in row)
            told = "│ " + " │ ".join(
                f"{value:.2f}".rjust(n) for value, n in zip(row, (8, 5), strict=True)
            )
            assert told in printed.getvalue(), (model, i)
    assert " (plasticity)" in printed.getvalue()


def test_every_phase_is_told_where_there_is_no_terminal(tmp_path):
    printed = io.StringIO()
    console = Console(file=printed, width=120)
    results = run_demo(TEXTS[:1], out=tmp_path, budget=BUDGET, progress=Progress(console))
    for model, title in (("hope", "Hope with a slow level"), ("transformer", "Transformer++")):
        value = f"{results.matrix(model)[1][0]:.2f}"
        told = f"{title} has learned counting: {value} bits per byte there, {value} on average"
        assert told in printed.getvalue()


def test_a_model_that_diverges_stops_the_run_and_leaves_a_report(tmp_path):
    with pytest.raises(NonFiniteError):
        run_demo(TEXTS, out=tmp_path, budget=with_lr(1e30), seed=0)
    results = read_results(tmp_path / "results.jsonl")
    assert not results.finished
    assert len(results.select("held_out_bpb")) == 4
    assert "stopped before its end" in (tmp_path / "report.html").read_text(encoding="utf-8")


def with_lr(lr: float) -> DemoBudget:
    return DemoBudget(**{**vars(BUDGET), "lr": lr})


def test_a_killed_run_leaves_what_it_measured(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "from pathlib import Path; from nestling.demo import run_demo\n"
        "import demo.test_demo_run as t\n"
        "budget = t.DemoBudget(**{**vars(t.BUDGET), 'steps': 10**6})\n"
        "run_demo(t.TEXTS, out=Path(sys.argv[1]), budget=budget)\n"
    )
    path = tmp_path / "results.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parents[1])],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while not path.exists() or path.read_bytes().count(b"\n") < 80:
            assert child.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.02)
        with pytest.raises(ValueError, match="another process is writing"):
            run_demo(TEXTS, out=tmp_path, budget=BUDGET)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    results = read_results(path)
    assert not results.finished
    assert len(results.rows) >= 40
    assert all(math.isfinite(row.value) for row in results.rows)
    run_demo(TEXTS, out=tmp_path, budget=BUDGET)  # the lock went with the process
    assert len(read_results(tmp_path / "results.1.jsonl").rows) == len(results.rows)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "expected at least one, got none"),
        ([TEXTS[0], TEXTS[0]], "different names, got 'counting' twice"),
        ([("thin", "abc" * 20)], "'thin' has 60 bytes"),
    ],
)
def test_bad_texts_are_refused_before_anything_is_written(tmp_path, texts, message):
    with pytest.raises(ValueError, match=message):
        run_demo(texts, out=tmp_path / "out", budget=BUDGET)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"out: cannot make the directory .*file: File exists"):
        run_demo(TEXTS, out=tmp_path / "file", budget=BUDGET)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"probed": 32}, "length < probed <= measured <= held_out, got 32, 32"),
        ({"reading": 65}, "reading: expected a multiple of length 32, got 65"),
    ],
)
def test_bad_budgets_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DemoBudget(**{**vars(BUDGET), **change})


def test_time_left_is_estimated_for_each_model_at_its_own_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress = Progress.silent()
    progress.expect({"slow": 10, "fast": 10})
    assert progress.seconds_left() is None
    for _ in range(5):
        now[0] += 4.0
        progress.step("slow", "Slow", "x", 1.0)
    assert progress.seconds_left() == 5 * 4.0 + 10 * 4.0  # the other is not known yet
    with progress.measuring("slow", "Slow", "all"):
        now[0] += 5.0
    for _ in range(5):
        now[0] += 1.0
        progress.step("fast", "Fast", "x", 1.0)
    assert progress.seconds_left() == 5 * 5.0 + 5 * 1.0


def test_nothing_of_the_run_leaks_into_torch(run):
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_the_number_of_threads_is_the_budgets_and_is_put_back(tmp_path):
    torch.set_num_threads(2)
    try:
        results = run_demo(TEXTS[:1], out=tmp_path, budget=BUDGET)
        assert (results.run["threads"], torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(1)


def test_hope_dreams_and_its_average_answers():
    hope, transformer = build_learners(with_lr(1e-2), seed=0)
    assert transformer.slow is None
    assert transformer.answers is transformer.model
    slow = hope.slow
    assert slow is not None
    for number, (name, text) in enumerate(TEXTS):
        domain = split(name, text, held_out_bytes=512, least_train_bytes=33)
        stream = TextStream(byte_ids(domain.train), batch=2, length=32, seed=0)
        assert len(list(hope.learn(stream, 60))) == 60
        assert slow.surprises == number  # nobody said that the second text began
    assert slow.dreams is not None
    rows = sequences(byte_ids_of(TEXTS[0]), length=32, most=320)
    known = mean(losses(hope.answers, rows)).value
    assert known < 5.5  # the first text is still known
    assert not torch.equal(hope.answers.embedding.weight, hope.model.embedding.weight)


def byte_ids_of(text: tuple[str, str]) -> bytes:
    return text[1].encode()
