"""Tasks of lm-eval on any model here, with writes on or off, from a saved session or from nothing.

    score(text) = sum over its tokens of ln p(x_t | state that the text has made so far)   on
                                         ln p(x_t | state that the text started from)      off

lm-eval asks, scores and counts; a model answers as :mod:`nestling.hf.scoring` reads.
"""

from __future__ import annotations

import io
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import nestling
from nestling.hf.opening import Opened, opened
from nestling.hf.scoring import Reading, Speaker
from nestling.hf.tasks import VERSION, TaskError, build_task, find_tasks
from nestling.session.reader import Reader
from nestling.session.session import moment_at
from nestling.shapes import Tensor
from nestling.storage.weights import random_state, set_random_state

from lm_eval import evaluator  # isort: skip  # nestling.hf.tasks says what to install
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED  # isort: skip
from lm_eval.models import huggingface  # isort: skip
from lm_eval.models.utils_hf import stop_sequences_criteria  # isort: skip

HFLM: Any = huggingface.HFLM  # its decorator hides what it is

LENGTH = 2048
"""Most tokens of a request where the model itself has no limit."""

RESAMPLED = 1000
"""Draws behind the standard error of a metric that is not a mean."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How to evaluate.

    Attributes:
        writes: ``"on"``: a request's own text writes while it is read; ``"off"``: it only reads;
            ``None``: on where there is something to write.
        limit: most documents of a task; ``None``: all.
        shots: worked examples before each question; ``None``: as the task says.
        batch: requests read at once.
        length: most tokens of a request: what is longer loses its beginning, and a text that is
            scored as a whole is cut into windows; ``None``: what the model has places for, or
            ``LENGTH``.
        include: folders with tasks of one's own.

    Raises:
        ValueError: naming the field that does not fit.
    """

    writes: str | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int = 1
    length: int | None = None
    include: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        if self.writes not in ("on", "off", None):
            raise ValueError(f"writes: expected 'on', 'off' or None, got {self.writes!r}")
        least = {"limit": 1, "shots": 0, "batch": 1, "length": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is None and name != "batch":
                continue
            if type(value) is not int or value < low:
                raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")


def evaluate(
    model: Any,
    tasks: Sequence[str],
    *,
    tokenizer: Any = None,
    how: Evaluation | None = None,
    session: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a model, and say everything in plain JSON values.

    Args:
        model: ours, with or without the door of transformers, stacked, any of transformers, or
            what :func:`nestling.hf.opening.open_model` found on the disk.
        tasks: names of lm-eval's tasks, groups or tags, or of those in ``how.include``.
        tokenizer: of transformers; bytes where the model knows just these.
        how: see :class:`Evaluation`.
        session: directory of a saved session where every request starts; it is not changed.
        on_progress: called with the number of texts and steps read so far.

    Returns:
        ``results``: by task, metrics as ``"acc"`` and ``"acc_stderr"`` (``"acc,filter"`` where the
        filter is none of the ordinary); ``groups`` the same; ``model``, ``how``, ``versions``,
        ``tasks`` (each one's whole configuration), ``documents``, and ``truncated``, the requests
        that were longer than ``how.length``. Nothing in it tells of time or commit.

    Raises:
        ValueError: naming the argument; :class:`nestling.hf.tasks.TaskError` for a task.
        SessionError: if there is no such session, or it is another model's.
    """
    how = how or Evaluation()
    found = model if isinstance(model, Opened) else opened(model, tokenizer)
    before = random_state()  # lm-eval seeds what belongs to everybody
    try:
        with quiet():
            manager, names = find_tasks(tasks, how.include)
            reader = _reader(found, how, session, on_progress)
            built = manager.load([task for name in names for task in build_task(name, manager)])
            for name, task in built["tasks"].items():
                _set_shots(name, task, how.shots)
            _seed()
            done: Any = evaluator.evaluate(
                reader, built, limit=how.limit, bootstrap_iters=RESAMPLED, log_samples=False
            )
    finally:
        set_random_state(before)
    return {
        "results": _metrics(done["results"]),
        "groups": _metrics(done.get("groups") or {}),
        "higher_is_better": done["higher_is_better"],
        "documents": done["n-samples"],
        "shots": done["n-shot"],
        "truncated": reader.truncated,
        "model": _described(found, reader),
        "how": {**asdict(how), "include": [str(folder) for folder in how.include],
                "writes": reader.writes, "length": reader.max_length,
                "session": None if session is None else str(session)},
        "versions": {"nestling": nestling.__version__, "lm_eval": VERSION,
                     "transformers": transformers.__version__, "torch": torch.__version__,
                     "tasks": done["versions"]},
        "tasks": _plain(done["configs"]),
    }  # fmt: skip


class StatefulLM(HFLM):
    """lm-eval's own reader of transformers, whose forward passes go through a :class:`Reading`.

    Args:
        found: the model.
        reading: ``None`` for a model without inner state.
        how: batch and length.
        on_progress: see :func:`evaluate`.
    """

    def __init__(
        self,
        found: Opened,
        reading: Reading | None,
        how: Evaluation,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        half = found.model.dtype in (torch.float16, torch.bfloat16)
        super().__init__(
            pretrained=found.model, tokenizer=found.tokenizer, backend="causal",
            batch_size=how.batch, max_length=how.length,
            softmax_dtype="float32" if half else None,
        )  # fmt: skip
        self.reading, self.read, self.truncated = reading, 0, 0
        self.on_progress = on_progress

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """As in lm-eval, without its bar, and where no place is left for a prompt it says so."""
        for request in requests:
            asked = request.args[1].get("max_gen_toks", self.max_gen_toks)
            if int(asked) >= self.max_length:
                raise ValueError(
                    f"length: {request.task_name!r} writes up to {asked} tokens behind a prompt, "
                    f"expected more, got {self.max_length}"
                )
        return super().generate_until(requests, disable_tqdm=True)

    @property
    def writes(self) -> str | None:
        """As in :class:`Evaluation`; ``None`` if there is nothing to write."""
        return None if self.reading is None else "on" if self.reading.writes else "off"

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """As in lm-eval, without its bar."""
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: Any = None,
        truncation: bool = False,
    ) -> Any:  # fmt: skip
        """As in lm-eval; what is cut is counted."""
        if left_truncate_len is not None:
            self.truncated += sum(len(self.tok_encode(one)) > left_truncate_len for one in strings)
        return super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **words: Any) -> Any:
        most, longest = self.max_length + 1, max(len(one[2]) for one in requests)
        if longest >= most:
            raise ValueError(
                f"length: a text to be scored has {longest} tokens, expected at least as many, got "
                f"{self.max_length}"
            )
        self.truncated += sum(len(one[1]) + len(one[2]) > most for one in requests)
        return super()._loglikelihood_tokens(requests, **{**words, "disable_tqdm": True})

    def _model_call(self, inps: Tensor, attn_mask: Any = None, labels: Any = None) -> Tensor:
        logits = super()._model_call(inps) if self.reading is None else self.reading.logits(inps)
        self._tell(len(inps))
        return logits

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **words: Any
    ) -> Tensor:
        if self.reading is None:
            self._tell(len(context))
            return super()._model_generate(context, max_length, stop, **words)
        greedy = not words.get("do_sample") and not words.get("temperature")
        if greedy:
            words = {**words, "do_sample": False, "temperature": None}
        mask = words.pop("attention_mask", None)
        words.setdefault("eos_token_id", self.tokenizer.eos_token_id)
        return Speaker(self.reading, self.model, self._tell).speak(
            context, mask, max_length=max_length, pad_token_id=self.tokenizer.pad_token_id,
            stopping_criteria=stop_sequences_criteria(
                self.tokenizer, stop, context.shape[1], context.shape[0]
            ),
            **words,
        )  # fmt: skip

    def _tell(self, rows: int) -> None:
        self.read += rows
        if self.on_progress is not None:
            self.on_progress(self.read)


@contextmanager
def quiet() -> Iterator[None]:
    """What lm-eval and the libraries below it print and log is not shown; errors are raised.

    It also keeps lm-eval from starting processes for its standard errors.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub",
                                                    "transformers")]  # fmt: skip
    levels, single = [logger.level for logger in loggers], os.environ.get("DISABLE_MULTIPROC")
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        os.environ["DISABLE_MULTIPROC"] = "1"
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if single is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = single


def _reader(
    found: Opened, how: Evaluation, session: Any, on_progress: Callable[[int], None] | None
) -> StatefulLM:
    own = ("n_positions", "max_position_embeddings", "n_ctx")
    config = found.model.config.get_text_config()
    if how.length is None and not any(getattr(config, name, None) for name in own):
        how = replace(how, length=LENGTH)
    if found.learner is None:
        if how.writes == "on" or session is not None:
            given = "writes" if session is None else "session"
            raise ValueError(
                f"{given}: a {type(found.model).__name__} has no inner state that could be "
                "written; nestling.hf.stack_levels gives it levels"
            )
        return StatefulLM(found, None, how, on_progress)
    state = None if session is None else _state(found, session)
    reading = Reading(learner=found.learner, writes=how.writes != "off", state=state)
    return StatefulLM(found, reading, how, on_progress)


def _state(found: Opened, session: str | Path) -> Any:
    from nestling.hf.tokenizer import our_tokenizer

    assert found.learner is not None
    size = found.model.config.get_text_config().vocab_size
    tokenizer = found.ours or our_tokenizer(found.tokenizer, size)
    model: Any = found.learner.module
    moment = moment_at(Path(session), Reader(model, tokenizer))
    return moment.state if moment.position else None


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    """As lm-eval does it, but that a word is not ignored."""
    own = task.get_config("num_fewshot")
    if shots is not None and own == 0 and shots != 0:
        raise TaskError(f"shots: {name!r} has none and allows none, expected 0, got {shots}")
    if shots is not None or own is None:
        task.set_config("num_fewshot", shots or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _seed() -> None:
    """The numbers that lm-eval starts with, for tasks that draw and texts that are sampled."""
    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    torch.manual_seed(DEFAULT_OTHER_SEED)


def _described(found: Opened, reader: StatefulLM) -> dict[str, Any]:
    module: Any = found.model if found.learner is None else found.learner.module
    return {
        "kind": found.kind,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "dtype": str(found.model.dtype).removeprefix("torch."),
        "tokens": reader.tokenizer.vocab_size,
        "config": _plain({name: value for name, value in found.model.config.to_dict().items()
                          if name != "_name_or_path"}),
        "stack": module.config.to_dict() if hasattr(module, "stack") else None,
    }  # fmt: skip


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """``"acc,none"`` as ``"acc"``; numbers only."""
    found: dict[str, dict[str, Any]] = {}
    for task, values in results.items():
        found[task] = {
            name.removesuffix(",none"): value
            for name, value in values.items()
            if isinstance(value, int | float) and name != "sample_len"
        }
    return found


def _plain(value: Any) -> Any:
    """JSON values; what is none is told in words."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if callable(value):
        return getattr(value, "__qualname__", type(value).__name__)
    return str(value)
