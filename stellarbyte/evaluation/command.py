"""What `stellarbyte evaluate` does with its options."""

import argparse
import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.evaluation.comparing import compare
from stellarbyte.evaluation.measuring import Measured, measure
from stellarbyte.evaluation.report import comparison_text, finite_json, measured_text
from stellarbyte.evaluation.scorer import Scorer
from stellarbyte.evaluation.texts import Sources, Text, read_texts
from stellarbyte.evaluation.windows import Windows
from stellarbyte.info import folder_kind
from stellarbyte.model_kind import model_kind
from stellarbyte.places import Place, local
from stellarbyte.progress import progress

# Opens the model of a run or a folder: (its kind, its path, the options of its wing) -> Scorer.
Open = Callable[..., Scorer]

# What only a run's own validation split has, and what only text of the user's has, with the values of unset options.
_OF_SPLIT: dict[str, Any] = {"shards": None, "kv_budget": None, "kv_policy": None, "kv_shape": None}
_OF_DATA: dict[str, Any] = {
    "text_field": "text",
    "domain_field": None,
    "window": None,
    "stride": None,
    "compare": None,
    "compare_step": None,
    "limit": None,
    "batch_tokens": 4096,
    "dtype": "auto",
}
_OF_RUNS: dict[str, Any] = {"step": None, "ema": False, "shards": None, "kv_budget": None}
_OF_FOLDERS: dict[str, Any] = {"device": None}


def run(options: argparse.Namespace, open_scorer: Open) -> None:
    """Measures, and prints figures or their JSON."""
    kind = evaluated_kind(options.model)
    others, whose = (_OF_FOLDERS, "Hugging Face folders") if kind == "run" else (_OF_RUNS, "runs")
    what = "a run" if kind == "run" else "a Hugging Face folder"
    _refuse(options, others, f"is for {whose}, and {options.model} is {what}: leave it out")
    if not options.data:
        _refuse(options, _OF_DATA, "is for text of yours: name some with --data")
        if kind == "model":
            raise UserError(f"{options.model} is a folder, which has no text of its own: name some with --data")
        import_module("stellarbyte_jax.cli").evaluate(options)
        return
    _refuse(options, _OF_SPLIT, "is for the run's own validation split, and --data names other text: leave it out")
    _on_texts(options, kind, open_scorer)


def _on_texts(options: argparse.Namespace, kind: str, open_scorer: Open) -> None:
    if options.batch_tokens < 1:
        raise UserError(f"--batch-tokens {options.batch_tokens} must be at least 1")
    if options.compare_step is not None and options.compare is None:
        raise UserError(f"--compare-step {options.compare_step} is a step of --compare, which is not given: give both")
    other_kind = None if options.compare is None else evaluated_kind(options.compare)
    if other_kind == "model" and options.compare_step is not None:
        raise UserError(f"--compare-step is for runs, and {options.compare} is a Hugging Face folder: leave it out")
    _check_there(options.compare, options.compare_step)
    texts = read_texts(Sources.of(options.data, options.text_field, options.domain_field, options.limit), _say)
    ours = _measured(open_scorer(kind, options.model, **_how(options, kind, options.step)), texts, options)
    if other_kind is None:
        print(json.dumps(finite_json(ours.to_dict())) if options.json else measured_text(ours))
        return
    how = _how(options, other_kind, options.compare_step)
    theirs = _measured(open_scorer(other_kind, options.compare, **how), texts, options)
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


def _how(options: argparse.Namespace, kind: str, step: int | None) -> dict[str, Any]:
    """What the wing of a model is told."""
    if kind == "model":
        return {"device": options.device, "dtype": options.dtype}
    if options.dtype == "float16":
        raise UserError("--dtype float16 is for Hugging Face folders, and runs compute in another: take bfloat16")
    return {"step": step, "dtype": "float32" if options.dtype == "auto" else options.dtype, "ema": options.ema}


def evaluated_kind(path: Place) -> str:
    """`model_kind` of a folder to be measured. Raises UserError: it is none, such as an adapter, or is in a bucket."""
    if path.is_dir() and folder_kind(path) == "adapter":
        raise UserError(
            f"{path} is an adapter, which is measured with its base: write both as one folder by "
            f"`stellarbyte merge BASE {path} OUT`, and evaluate that"
        )
    kind = model_kind(path)
    if kind == "model":
        local(path, "MODEL", "Hugging Face folders are read from this machine: copy it here")
    return kind


def _refuse(options: argparse.Namespace, names: dict[str, Any], why: str) -> None:
    for name, unset in names.items():
        if getattr(options, name) != unset:
            option = "data.shards" if name == "shards" else name.replace("_", "-")
            raise UserError(f"--{option} {why}")


def _say(text: str) -> None:
    print(f"stellarbyte: {text}", file=sys.stderr)
