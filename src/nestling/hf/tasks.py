"""Names of tasks in the installed lm-eval: which there are, and tasks with their data.

    a name  ->  the folder given, then the known folder of a downstream name, then all of lm-eval

lm-eval reads some ten thousand files to know all its names, which takes many seconds: it is asked
for all of them only where a name is nowhere else.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("lm_eval") is None:
    raise ImportError('evaluation needs lm-eval: pip install "nestling[eval]"')

import lm_eval
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

VERSION = lm_eval.__version__
FOLDER = Path(lm_eval.__file__).parent / "tasks"


class TaskError(ValueError):
    """A task is unknown, cannot be built, or its data are not there."""


@dataclass(frozen=True)
class Downstream:
    """A task that sequence models are compared on.

    Attributes:
        kind: what it asks for: language modelling, common sense, or recall from the context.
        names: in lm-eval, the one to be preferred first.
        folder: where lm-eval keeps it.
    """

    kind: str
    names: tuple[str, ...]
    folder: str


def _row(kind: str, *names: str, folder: str = "") -> Downstream:
    return Downstream(kind, names, folder or names[0])


DOWNSTREAM = {
    "wikitext": _row("language modelling", "wikitext"),
    "lambada_openai": _row("language modelling", "lambada_openai", folder="lambada"),
    "piqa": _row("common sense", "piqa"),
    "hellaswag": _row("common sense", "hellaswag"),
    "winogrande": _row("common sense", "winogrande"),
    "arc_easy": _row("common sense", "arc_easy", folder="arc"),
    "arc_challenge": _row("common sense", "arc_challenge", folder="arc"),
    "social_iqa": _row("common sense", "social_iqa", "siqa", folder="siqa"),
    "boolq": _row("common sense", "boolq", folder="super_glue"),
    "swde": _row("recall", "swde", "based_swde"),
    "fda": _row("recall", "fda", "based_fda"),
    "squad_completion": _row("recall", "squad_completion", "based_squad"),
}
"""By the name that papers use."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A name that the installed lm-eval knows.

    Attributes:
        name: as it was asked for.
        task: as lm-eval calls it.
        measures: its output type, or what else it is.
        data: the data set that it reads.
    """

    name: str
    task: str
    measures: str
    data: str


def downstream_tasks() -> list[Known]:
    """What each name of :data:`DOWNSTREAM` is in the installed lm-eval.

    Raises:
        TaskError: naming one that is nothing there.
    """
    manager = _known_folders(DOWNSTREAM)
    if any(_own_name(name, manager) is None for name in DOWNSTREAM):
        manager = TaskManager()
    found = []
    for name in DOWNSTREAM:
        task = _own_name(name, manager)
        if task is None:
            raise TaskError(_unknown(name, manager, ()))
        found.append(_known(name, task, manager))
    return found


def find_tasks(names: Sequence[str], include: Sequence[Path] = ()) -> tuple[TaskManager, list[str]]:
    """Who builds these tasks, and what lm-eval calls them.

    Args:
        names: of tasks, groups or tags.
        include: folders with more tasks, which come first.

    Raises:
        TaskError: if a name is nothing, with those that are near to it.
    """
    if isinstance(names, str) or not names or not all(isinstance(n, str) and n for n in names):
        raise TaskError(f"tasks: expected a list of names, got {names!r}")
    for folder in include:
        if not folder.is_dir():
            raise TaskError(f"include_path: expected a folder, got {str(folder)!r}")
    names = list(dict.fromkeys(names))
    folders: list[str | Path] = list(include)
    small = TaskManager(include_path=folders, include_defaults=False) if folders else None
    if small is not None and all(name in small.all_subtasks for name in names):
        return small, names
    wanted = [name for name in names if small is None or name not in small.all_subtasks]
    if all(name in DOWNSTREAM for name in wanted):
        manager = _known_folders(wanted, include)
        if all(_own_name(name, manager) is not None for name in names):
            return manager, [_own_name(name, manager) or name for name in names]
    manager = TaskManager(include_path=folders or None)
    for name in names:
        if _own_name(name, manager) is None:
            raise TaskError(_unknown(name, manager, include))
    return manager, [_own_name(name, manager) or name for name in names]


def build_task(name: str, manager: TaskManager) -> list[Any]:
    """A task, or a group, or the tasks of a tag, with their data.

    Raises:
        TaskError: if the data are not on this disk and cannot be fetched, or the task cannot be
            built.
    """
    try:
        loaded: Any = manager.load([name])
    except OSError as error:  # also what the network says
        raise TaskError(
            f"tasks: the data of {name!r}{_data_of(name, manager)} are not on this disk and could "
            f"not be fetched: {_one_line(error)}; load them once where there is a network, or give "
            "a task of your own by include_path"
        ) from error
    except Exception as error:  # a task is somebody else's code
        raise TaskError(f"tasks: {name!r} cannot be built: {_one_line(error)}") from error
    groups = loaded.get("groups") or {}
    return [groups[name]] if name in groups else list(loaded["tasks"].values())


def _known_folders(names: Any, include: Sequence[Path] = ()) -> TaskManager:
    folders = [FOLDER / DOWNSTREAM[name].folder for name in names]
    there: list[str | Path] = [one for one in dict.fromkeys(folders) if one.is_dir()]
    return TaskManager(include_path=[*there, *include], include_defaults=False)


def _own_name(name: str, manager: TaskManager) -> str | None:
    names = (name, *DOWNSTREAM[name].names) if name in DOWNSTREAM else (name,)
    return next((one for one in names if one in manager.task_index), None)


def _known(name: str, task: str, manager: TaskManager) -> Known:
    entry = manager.task_index[task]
    said: Any = entry.cfg or {}
    measures = str(said.get("output_type") or "").replace("_", " ")
    own = "class" in said
    return Known(
        name=name, task=task,
        measures=measures or ("a task in Python" if own else entry.kind.name.lower()),
        data=str(said.get("dataset_path") or "its own"),
    )  # fmt: skip


def _unknown(name: str, manager: TaskManager, include: Sequence[Path]) -> str:
    near = difflib.get_close_matches(name, manager.all_tasks, n=4, cutoff=0.6)
    told = f"; near to it: {', '.join(near)}" if near else ""
    for file in sorted(file for folder in include for file in folder.rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False, recursive=True)
        except Exception as error:  # lm-eval leaves such a file out without a word
            told += f"; {file} cannot be read: {_one_line(error)}"
    return f"tasks: lm-eval {VERSION} knows none named {name!r}{told}"


def _data_of(name: str, manager: TaskManager) -> str:
    entry = manager.task_index.get(name)
    path = (entry.cfg or {}).get("dataset_path") if entry is not None else None
    return f" ({path})" if path else ""


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
