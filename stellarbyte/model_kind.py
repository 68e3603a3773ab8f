"""The two kinds of models that commands take: a run, and a Hugging Face folder; and the wing that reads each."""

from importlib import import_module
from typing import Any, Literal

from stellarbyte.errors import UserError
from stellarbyte.info import folder_kind
from stellarbyte.places import Place

Kind = Literal["run", "model"]

_WINGS: dict[Kind, str] = {"run": "stellarbyte_jax", "model": "stellarbyte_torch"}


def wing_of(kind: Kind) -> Any:
    """The commands of the wing that reads models of a kind, its module `cli`; it is imported when one is used."""
    return import_module(f"{_WINGS[kind]}.cli")


def model_kind(path: Place) -> Kind:
    """Whether a folder is a run of pretraining or a Hugging Face model. Raises UserError: it is neither."""
    kind = folder_kind(path)
    if kind in ("run", "model"):
        return kind
    if kind == "fine-tuning run":
        results = [str(path / name) for name in ("model", "adapter") if (path / name).is_dir()]
        raise UserError(
            f"{path} is a fine-tuning run: "
            + (f"name what it has made, {results[0]}" if results else "it has made no model yet")
        )
    if kind == "adapter":
        raise UserError(f"{path} is an adapter: name its base, and chat with --adapter {path}, or merge the two first")
    raise UserError(f"{path} holds no model: name a run, or a Hugging Face folder")
