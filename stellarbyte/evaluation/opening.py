"""Opens the model that is to be measured, a run's or a folder's, by its wing."""

import argparse
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.evaluation.scorer import Scorer
from stellarbyte.info import folder_kind
from stellarbyte.model_kind import Kind, model_kind, wing_of
from stellarbyte.places import Place, local


def evaluated_kind(path: Place) -> Kind:
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


def how_of(options: argparse.Namespace, kind: Kind, step: int | None) -> dict[str, Any]:
    """What the wing of a model is told."""
    if kind == "model":
        return {"device": options.device, "dtype": options.dtype}
    if options.dtype == "float16":
        raise UserError("--dtype float16 is for Hugging Face folders, and runs compute in another: take bfloat16")
    return {"step": step, "dtype": "float32" if options.dtype == "auto" else options.dtype, "ema": options.ema}


def open_scorer(path: Place, kind: Kind, how: dict[str, Any]) -> Scorer:
    """The model of a run or of a folder, by its wing."""
    scorer: Scorer = wing_of(kind).scorer(path, **how)
    return scorer


def open_task_model(path: Place, kind: Kind, batch_tokens: int, how: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the model as lm-eval's tasks use it, what a report says of it)."""
    found: tuple[Any, dict[str, Any]] = wing_of(kind).task_model(path, batch_tokens, **how)
    return found
