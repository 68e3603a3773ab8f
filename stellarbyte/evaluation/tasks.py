"""Runs lm-eval's tasks from files of this machine on a model."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError

_SUFFIXES = (".yaml", ".yml")


def is_task_file(path: Path) -> bool:
    """Whether a path is a task's YAML, or a folder of such."""
    return path.suffix in _SUFFIXES or path.is_dir()


def load_tasks(paths: Sequence[Path]) -> list[Any]:
    """lm-eval's tasks and groups in YAML files, and in all of a folder's, with their data.

    A relative path of data in a YAML is one of the YAML's own folder or, failing that, of the folder that the command
    runs in, as lm-eval takes it. A YAML may run Python of its folder (`!function`), which is up to whoever wrote it.

    Raises:
        UserError: there is no task, or one cannot be loaded, such as one whose data are on the Hub.
        ModuleNotFoundError: lm-eval is not installed.
    """
    for path in paths:  # before a library is asked for
        if not path.exists():
            raise UserError(f"--tasks {path} is not there: name a task's YAML, or a folder of them")
    import datasets
    from lm_eval.tasks import TaskManager

    # It tells of every default that a YAML leaves to it; what is wrong with a task raises.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    found: list[Any] = []
    for path in paths:
        folder = path if path.is_dir() else path.parent
        try:
            manager = TaskManager(include_path=str(folder.resolve()), include_defaults=False)
        except Exception as error:
            raise UserError(f"--tasks {path} holds a YAML that lm-eval cannot read: {_words(error)}") from error
        index = manager.task_index
        wanted = {
            name: Path(str(entry.yaml_path))
            for name, entry in index.items()
            if entry.yaml_path and (path.is_dir() or Path(str(entry.yaml_path)).resolve() == path.resolve())
        }
        if not wanted:
            raise UserError(f"--tasks {path} holds no task: a YAML of lm-eval has `task:` with the task's name")
        groups = [name for name in wanted if name in manager.all_groups]
        loaded = [_loaded(manager, name, wanted[name], path) for name in groups]
        inside = {task.task_name for group in loaded for task in group.get_all_tasks()}
        names = [name for name in wanted if name not in groups and name not in inside]
        found += loaded + [_loaded(manager, name, wanted[name], path) for name in names]
    return found


def run_tasks(model: Any, tasks: Sequence[Any], few_shot: int | None, limit: int | None) -> dict[str, Any]:
    """lm-eval's results. few_shot: examples before each question; None for what each task says."""
    import lm_eval

    results = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), num_fewshot=few_shot, limit=limit, log_samples=False, bootstrap_iters=1000
    )
    assert results is not None  # other processes than the first get none, and there are none
    return dict(results)


def tasks_text(results: dict[str, Any]) -> str:
    """lm-eval's table of the tasks and, if there are some, that of the groups."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables).rstrip()


def tasks_json(results: dict[str, Any]) -> dict[str, Any]:
    """What of lm-eval's results JSON holds: the scores, and how they were made."""
    names = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples")
    return {name: results[name] for name in names if name in results}


def _loaded(manager: Any, name: str, yaml: Path, path: Path) -> Any:
    """A task or a group by its name, with its data."""
    errors: list[Exception] = []
    for folder in (yaml.parent, Path.cwd()):
        try:
            with contextlib.chdir(folder):
                found = manager.load([name])
            return next(iter(found["groups"].values()), None) or next(iter(found["tasks"].values()))
        except Exception as error:  # noqa: BLE001 - lm-eval and datasets raise all kinds
            errors.append(error)
            if not isinstance(error, FileNotFoundError):
                break
    raise UserError(
        f"--tasks {path}: lm-eval cannot load the task {name}: {_words(errors[0])}; its data have to be local, as by "
        "`dataset_path: json` and `dataset_kwargs: {data_files: …}`"
    ) from errors[0]


def _words(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
