"""What `stellarbyte evaluate` does with its options."""

import argparse
import json
import sys
from importlib import import_module
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.evaluation.comparing import compare
from stellarbyte.evaluation.measuring import Measured, measure
from stellarbyte.evaluation.opening import evaluated_kind, how_of, open_scorer
from stellarbyte.evaluation.report import comparison_text, measured_text
from stellarbyte.evaluation.scorer import Scorer
from stellarbyte.evaluation.task_command import on_tasks
from stellarbyte.evaluation.texts import Sources, Text, read_texts
from stellarbyte.evaluation.windows import Windows
from stellarbyte.figures import finite_json
from stellarbyte.model_kind import Kind
from stellarbyte.places import Place
from stellarbyte.progress import progress

# What only a run's own validation split has, and what only text of the user's has, with the values of unset options.
_OF_SPLIT: dict[str, Any] = {"shards": None, "kv_budget": None, "kv_policy": None, "kv_shape": None}
_OF_DATA: dict[str, Any] = {
    "text_field": "text",
    "domain_field": None,
    "window": None,
    "stride": None,
    "compare": None,
    "compare_step": None,
}
_OF_TASKS: dict[str, Any] = {"few_shot": None}
_OF_EITHER: dict[str, Any] = {"limit": None, "batch_tokens": 4096, "dtype": "auto"}
_OF_RUNS: dict[str, Any] = {"step": None, "ema": False, "shards": None, "kv_budget": None}
_OF_FOLDERS: dict[str, Any] = {"device": None}


def run(options: argparse.Namespace) -> None:
    """Measures, and prints figures or their JSON."""
    kind = evaluated_kind(options.model)
    others, whose = (_OF_FOLDERS, "Hugging Face folders") if kind == "run" else (_OF_RUNS, "runs")
    what = "a run" if kind == "run" else "a Hugging Face folder"
    _refuse(options, others, f"is for {whose}, and {options.model} is {what}: leave it out")
    if options.data and options.tasks:
        raise UserError("--data and --tasks are two evaluations: run the command once for each")
    if not options.data:
        _refuse(options, _OF_DATA, "is for text of yours: name some with --data")
    if not options.tasks:
        _refuse(options, _OF_TASKS, "is for tasks: name some with --tasks")
    if not options.data and not options.tasks:
        _refuse(options, _OF_EITHER, "is for --data and --tasks: name texts or tasks")
        if kind == "model":
            raise UserError(f"{options.model} is a folder, which has no text of its own: name some with --data")
        import_module("stellarbyte_jax.cli").evaluate(options)
        return
    given = "--data" if options.data else "--tasks"
    _refuse(options, _OF_SPLIT, f"is for the run's own validation split, not for {given}: leave it out")
    for name in ("limit", "batch_tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be at least 1")
    (_on_texts if options.data else on_tasks)(options, kind)


def _on_texts(options: argparse.Namespace, kind: Kind) -> None:
    if options.compare_step is not None and options.compare is None:
        raise UserError(f"--compare-step {options.compare_step} is a step of --compare, which is not given: give both")
    other_kind = None if options.compare is None else evaluated_kind(options.compare)
    if other_kind == "model" and options.compare_step is not None:
        raise UserError(f"--compare-step is for runs, and {options.compare} is a Hugging Face folder: leave it out")
    _check_there(options.compare, options.compare_step)
    remarks: list[str] = []  # told once it is known that there is text
    sources = Sources.of(options.data, options.text_field, options.domain_field, options.limit)
    texts = read_texts(sources, remarks.append)
    for remark in remarks:
        print(f"stellarbyte: {remark}", file=sys.stderr)
    ours = _measured(open_scorer(options.model, kind, how_of(options, kind, options.step)), texts, options)
    if other_kind is None:
        print(json.dumps(finite_json(ours.to_dict())) if options.json else measured_text(ours))
        return
    how = how_of(options, other_kind, options.compare_step)
    theirs = _measured(open_scorer(options.compare, other_kind, how), texts, options)
    found = compare(ours.documents, theirs.documents)
    if options.json:
        sides = {"compared_with": finite_json(theirs.to_dict()), "comparison": found.to_dict()}
        print(json.dumps({**finite_json(ours.to_dict()), **sides}))
    else:
        print(comparison_text(ours, theirs, found))


def _check_there(other: Place | None, step: int | None) -> None:
    """Raises UserError where the checkpoint to compare with is missing, before the first model is measured."""
    if other is not None and step is not None and not (other / "checkpoints" / str(step)).is_dir():
        raise UserError(
            f"--compare-step {step}: {other} has no checkpoint of that step; `stellarbyte checkpoints` lists them"
        )


def _measured(scorer: Scorer, texts: list[Text], options: argparse.Namespace) -> Measured:
    windows = Windows.of(scorer, options.window, options.stride)
    with progress(f"reading by {scorer.name}", "B") as update:
        return measure(scorer, texts, windows, options.batch_tokens, update)


def _refuse(options: argparse.Namespace, names: dict[str, Any], why: str) -> None:
    for name, unset in names.items():
        if getattr(options, name) != unset:
            option = "data.shards" if name == "shards" else name.replace("_", "-")
            raise UserError(f"--{option} {why}")
