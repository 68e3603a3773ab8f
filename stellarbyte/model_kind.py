"""Tells the two kinds of models apart that commands take: a run, and a Hugging Face folder."""

from typing import Literal

from stellarbyte.errors import UserError
from stellarbyte.info import folder_kind
from stellarbyte.places import Place


def model_kind(path: Place) -> Literal["run", "model"]:
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
