"""``nestling eval``: every kind of directory, every way to be wrong in one line, and the names."""

import json
import re
import sys

import datasets
import pytest
import torch
from eval_tasks import llama, write_task, write_tasks

import nestling.cli.evaluation
from nestling.cli import main
from nestling.hf import HopeForCausalLM, byte_tokenizer, stack_levels
from nestling.hf.tasks import DOWNSTREAM, TaskError, downstream_tasks, find_tasks
from nestling.levels import Level
from nestling.models import build
from nestling.storage import checkpoint
from nestling.storage.weights import weights


@pytest.fixture(autouse=True, scope="module")
def offline(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A run of ours, the same for transformers, a Llama, and the Llama with levels."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = build("hope", width=16, heads=2, layers=1)
    with torch.no_grad():
        model.embedding.weight.mul_(5)
    saved = checkpoint.Checkpoint(
        step=1, tokens=1, config={"model": model.config.to_dict()}, model=weights(model)
    )
    checkpoint.write(folder / "run", saved)
    HopeForCausalLM.from_language_model(model).save_pretrained(folder / "hope")
    base = llama().float()
    base.save_pretrained(folder / "llama")
    stack_levels(base, [Level(9), Level(22)], step_size=0.5).save_pretrained(folder / "stacked")
    for name in ("llama", "stacked"):
        byte_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture
def cli(monkeypatch, capfd, tmp_path):
    """Runs a command in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")  # set by main() too: put back after the test

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nestling", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture
def results(cli, models, tasks, tmp_path):
    """Evaluates a model: standard output and what --out holds."""

    def run(name, *options):
        code, out, err = cli("eval", models / name, "--tasks", "pairs,choices", "--include-path",
                             tasks, "--device", "cpu", "--out", tmp_path / "out.json",
                             *options)  # fmt: skip
        assert (code, err) == (0, ""), err
        return out, json.loads((tmp_path / "out.json").read_text())

    return run


def refused(result, message):
    code, _, err = result
    assert code == 2
    assert err.startswith("nestling: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_a_run_and_the_same_for_transformers(cli, results, models, tmp_path):
    out, ours = results("run", "--batch", 2)
    assert "hope (nestling)" in out
    assert "writes on: every request's own text is learned while it is read" in out
    value = ours["results"]["pairs"]["perplexity"]
    told = re.search(r"pairs +3 +perplexity down +(\S+) +(\S+)", out)
    assert told is not None, out
    spread = ours["results"]["pairs"]["perplexity_stderr"]
    assert float(told[1].replace(",", "")) == pytest.approx(value, rel=1e-3)
    assert float(told[2].replace(",", "")) == pytest.approx(spread, rel=1e-3)
    _, theirs = results("hope", "--batch", 2)
    assert theirs["results"]["pairs"]["perplexity"] == pytest.approx(value, rel=1e-6)
    _, off = results("run", "--writes", "off")
    assert off["how"]["writes"] == "off"
    assert off["results"]["pairs"]["perplexity"] != pytest.approx(value, rel=1e-4)
    (tmp_path / "book.txt").write_text("the cat sat on the mat, and the hen sat on the cat. " * 3)
    cli("session", "feed", "notes", "book.txt", "--checkpoint", models / "run")
    _, later = results("run", "--session", "notes")
    assert later["how"]["session"] == "notes"
    assert later["results"]["pairs"]["perplexity"] != pytest.approx(value, rel=1e-4)


def test_a_stack_and_the_model_under_it(results):
    out, plain = results("llama")
    assert "LlamaForCausalLM" in out
    assert "no inner state" in out
    _, off = results("stacked", "--writes", "off")
    assert off["results"] == plain["results"]
    out, on = results("stacked", "--limit", 3)
    assert "LlamaForCausalLM with levels" in out
    assert on["model"]["stack"]["plan"] == "layer_mod_levels"
    assert on["results"]["pairs"]["perplexity"] != plain["results"]["pairs"]["perplexity"]


def test_a_long_request_is_told(results):
    out, done = results("run", "--length", 20, "--limit", 1)
    assert done["truncated"] == 4  # one pair and the three choices of one question
    assert "4 requests were longer than 20 tokens and lost their beginning" in out


def test_every_downstream_name_is_a_task(cli):
    known = downstream_tasks()
    assert [one.name for one in known] == list(DOWNSTREAM) == [
        "wikitext", "lambada_openai", "piqa", "hellaswag", "winogrande", "arc_easy",
        "arc_challenge", "social_iqa", "boolq", "swde", "fda", "squad_completion",
    ]  # fmt: skip
    code, out, err = cli("eval", "--list")
    assert (code, err) == (0, "")
    for one in known:
        manager, names = find_tasks([one.name])
        assert names == [one.task]
        assert one.task in manager.all_subtasks
        assert re.search(rf"{one.name} +{one.task} ", out)


def test_errors_of_the_command_are_one_line(cli, models, tasks, tmp_path, monkeypatch):
    run = models / "run"
    refused(cli("eval"), "model: expected a directory")
    refused(cli("eval", run), "--tasks: expected names")
    refused(cli("eval", "nowhere", "--tasks", "piqa"), "model: no such directory: 'nowhere'")
    refused(cli("eval", tmp_path, "--tasks", "piqa"), "holds neither a run of nestling")
    refused(
        cli("eval", run, "--tasks", "piqa", "--writes", "maybe"), "writes: expected 'on', 'off'"
    )
    refused(cli("eval", run, "--tasks", "pairs", "--include-path", "nowhere"), "expected a folder")
    refused(
        cli("eval", run, "--tasks", "piqa", "--out", "no/where.json"), "--out: 'no' is no folder"
    )
    refused(cli("eval", models / "llama", "--tasks", "pairs", "--include-path", tasks,
                "--writes", "on"), "writes: a LlamaForCausalLM has no inner state")  # fmt: skip
    refused(cli("eval", run, "--tasks", "pairs", "--include-path", tasks, "--session", "none"),
            "none: no session")  # fmt: skip
    message = r"the data of 'piqa' \(baber/piqa\) are not on this disk and could not be fetched"
    refused(cli("eval", run, "--tasks", "piqa,boolq"), message)
    monkeypatch.setattr(nestling.cli.evaluation, "find_spec", lambda name: None)
    refused(cli("eval", run, "--tasks", "piqa"), r'needs lm-eval: pip install "nestling\[eval\]"')
    refused(cli("eval", "--list"), r'needs lm-eval: pip install "nestling\[eval\]"')


def test_a_task_that_cannot_be_built(cli, models, tmp_path):
    write_task(tmp_path, "gone", [{"text": "a"}], output_type="loglikelihood_rolling",
               doc_to_text="", doc_to_target="{{text}}")  # fmt: skip
    write_task(tmp_path, "odd", [{"text": "a"}], output_type="no such thing")
    (tmp_path / "gone.jsonl").unlink()
    command = ("eval", models / "run", "--include-path", tmp_path, "--tasks")
    refused(cli(*command, "gone"), r"the data of 'gone' \(json\) are not on this disk.*gone.jsonl")
    refused(cli(*command, "odd"), "tasks: 'odd' cannot be built: .*no such thing")


@pytest.mark.slow
def test_an_unknown_name_has_neighbours(tmp_path):
    """lm-eval is asked for all of its names."""
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(TaskError, match=r"knows none named 'arc_esy'; near to it: .*arc_easy.*"
                                        r"broken.yaml cannot be read"):  # fmt: skip
        find_tasks(["wikitext", "arc_esy"], [tmp_path])
    with pytest.raises(TaskError, match=r"tasks: expected a list of names, got 'piqa'"):
        find_tasks("piqa")
