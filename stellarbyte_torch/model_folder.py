"""Loads a causal language model, of whatever architecture, from its Hugging Face folder."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stellarbyte.errors import UserError, shown
from stellarbyte.file_manifest import check_files
from stellarbyte.files import check_plain_name
from stellarbyte.reading import read_json_object
from stellarbyte.safetensors_header import read_header
from stellarbyte_torch.configuration_stellarbyte import ByteConfig

# What transformers raises for a config or weights that somebody else made; which of them, it promises nowhere.
MISTAKES = (
    *(OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, MemoryError),
    *(ImportError, SafetensorError, StrictDataclassError),
)
_MOST_LAYERS = 10_000
_INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
# In the format's words: what weights may be kept in that are not quantised.
_FLOATS = ("F64", "F32", "F16", "BF16")


def load_model(folder: Path, device: str | None = None, dtype: str = "auto") -> PreTrainedModel:
    """The model in a folder, in eval mode: device None takes CUDA where there is one, dtype "auto" the saved one.

    Raises:
        UserError: the folder is missing or damaged, names files outside it, needs code of its own, holds weights that
            are no finite numbers, or the device is not there.
    """
    config = read_config(folder)
    check_files(folder)
    try:
        target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} is not available here: {first_line(error)}") from error
    quantised = config.get("quantization_config") is not None
    try:
        if not quantised:
            _check_weight_files(folder, only_floats=config.get("model_type") == ByteConfig.model_type)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    except MISTAKES as error:
        raise UserError(f"{folder} holds a model that cannot be loaded: {first_line(error)}") from error
    model, report = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise UserError(f"{folder} does not fit its config.json: {kind.replace('_', ' ')} {some(report[kind])}")
    if not quantised:
        check_finite(model, folder)
    return model.to(target).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json; raises UserError: there is no such folder or file, or it is no JSON object."""
    if not (folder / "config.json").is_file():
        missing = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {missing}: give a model's Hugging Face folder")
    config = read_json_object(folder / "config.json")
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(config.get(name), int) and config[name] > _MOST_LAYERS:  # they are built one by one
            raise UserError(f"{folder / 'config.json'}: {name} {shown(config[name])} is more than {_MOST_LAYERS}")
    return config


def _check_weight_files(folder: Path, only_floats: bool) -> None:
    """Hold the safetensors files against themselves and each other, before transformers opens what they name."""
    index = folder / _INDEX
    if (folder / _WHOLE).exists() or not index.exists():
        names = [_WHOLE] if (folder / _WHOLE).exists() else []  # else transformers says what is missing
    else:
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise UserError(f"{index}: weight_map is {shown(weight_map)}, expected the file of each tensor")
        names = [
            check_plain_name(name, f"{index}: weight_map") for name in dict.fromkeys(map(str, weight_map.values()))
        ]
    for name in names:
        for key, header in read_header(folder / name).items():
            if only_floats and header.dtype not in _FLOATS:
                raise UserError(
                    f"{folder / name} holds {key} as {header.dtype}, expected one of {', '.join(_FLOATS)}: save "
                    "or export the model again"
                )


def check_finite(model: torch.nn.Module, where: Path) -> None:
    """Raises UserError naming the first weight that holds NaN or infinite numbers, of which a model makes nonsense."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(weight).all():
            raise UserError(
                f"{where} holds {name} with NaN or infinite numbers: its training went wrong, or the file is damaged; "
                "take an earlier one"
            )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not folder.is_dir():
        raise UserError(f"the tokenizer's folder {folder} does not exist: check the path, relative to {Path.cwd()}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json_object(folder / name)  # within bounds, before transformers reads it without
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises the bare class for a damaged tokenizer.json
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; a field's validation says what is wrong in its second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines if isinstance(error, StrictDataclassError) else lines[:1])


def some(names: Any) -> str:
    """The first few of many names, for a sentence."""
    ordered = sorted(map(str, names))
    return f"{ordered[:3]}{f' and {len(ordered) - 3} more' if len(ordered) > 3 else ''}"
