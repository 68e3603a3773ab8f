"""Loads a causal language model, of whatever architecture, from its Hugging Face folder."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import check_files


def load_model(folder: Path, device: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """The model in a folder, in eval mode: device None takes CUDA where there is one, dtype "auto" the saved one.

    Raises:
        UserError: the folder is missing or damaged, needs code of its own, or the device is not there.
    """
    if not (folder / "config.json").is_file():
        missing = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {missing}: give a model's Hugging Face folder")
    check_files(folder)
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not available here: {first_line(error)}") from error
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise UserError(f"{folder} holds a model that cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise UserError(f"{folder} does not fit its config.json: {kind.replace('_', ' ')} {sorted(report[kind])}")
    return model.to(target).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"the tokenizer's folder {folder} does not exist: check the path, relative to {Path.cwd()}")
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises the bare class for a damaged tokenizer.json
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
