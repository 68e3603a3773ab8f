"""Loads a causal language model of any architecture from its Hugging Face folder."""

import contextlib
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stellarbyte.errors import UserError, shown
from stellarbyte.file_manifest import check_files
from stellarbyte.files import check_plain_name
from stellarbyte.lora_values import is_whole
from stellarbyte.quantised import is_quantised
from stellarbyte.reading import read_json_object
from stellarbyte.safetensors_header import read_header
from stellarbyte.tokenizer_file import check_tokenizer, works
from stellarbyte_torch.compressed_folder import (
    check_can_be_read,
    check_method,
    check_names,
    decompress,
    is_compressed,
    quietly,
)
from stellarbyte_torch.compressed_scheme import check_scheme
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.decoder import check_decoder
from stellarbyte_torch.torchao_settings import Int8, torchao_settings

# What Transformers may raise for a damaged or foreign config or weights; it documents no list.
MISTAKES = (
    *(OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, MemoryError),
    *(ImportError, SafetensorError, StrictDataclassError, pickle.UnpicklingError, EOFError),
)
# Transformers builds these one by one, so a huge number would take for ever.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_MOST = {**dict.fromkeys(_LAYERS, 10_000), "num_labels": 1_000_000}
# How files with a tokenizer's tokens begin.
_VOCABULARIES = ("tokenizer.", "vocab", "merges", "spiece", "sentencepiece", "tekken")
# A text that is encoded to see whether a tokenizer works, also with its own settings.
_PROBE = "A star, 3 é。\n"
INDEX = "model.safetensors.index.json"
_WHOLE = "model.safetensors"
# The dtypes of weights that are not quantised, in safetensors' words.
_FLOATS = ("F64", "F32", "F16", "BF16")


def load_model(
    folder: Path,
    device: str | None = None,
    dtype: str = "auto",
    *,
    dequantised: bool = False,
    quantize: Int8 | None = None,
) -> PreTrainedModel:
    """The model in a folder, in eval mode. device None means CUDA if there is one; dtype "auto" means the saved one.

    dequantised: whether a folder in compressed-tensors' format gives a model of floats that trains and saves like any
    other. Otherwise its layers round their inputs to int8 if the folder says so. Its weights are floats in both cases,
    as Transformers has no kernels for codes. quantize: how torchao rounds the linear layers of a model of floats.

    Raises:
        UserError: the folder is missing or damaged, names files outside it, needs its own code, or holds weights that
            are not finite; the device is not there; or `quantize` is not for this model.
        ModuleNotFoundError: `quantize` needs torchao, which is not installed.
    """
    config = read_config(folder)
    if quantize is not None:
        _check_quantize(folder, config, quantize)
    _check_generation(folder)
    check_files(folder)
    target = device_named(device)
    quantised = is_quantised(config)
    compressed = quantised and is_compressed(config)
    if quantised:
        check_method(folder, config)
    options: dict[str, Any] = {} if quantize is None else {"quantization_config": torchao_settings(quantize)}
    if compressed:
        check_can_be_read(folder)
    try:
        files = weight_files(folder, config, only_floats=not quantised) if compressed or not quantised else {}
        if compressed:
            check_names(folder, config, files)
            check_scheme(folder, config, files)
        with _no_report(), quietly() if compressed else contextlib.nullcontext():
            # Weights that do not fit are reported below by their names.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                **options,
            )
    except UserError:
        raise
    except MISTAKES as error:
        # Transformers fails like this on compressed layers whose codes it would have to make up.
        misfits = compressed and isinstance(error, AttributeError)
        why = "layers that quantization_config.ignore does not name lack codes" if misfits else first_line(error)
        if why.startswith("Unrecognized configuration class"):
            why = f"Transformers has no causal language model of model_type {shown(config.get('model_type'))}"
        raise UserError(f"{folder} holds a model that cannot be loaded: {why}") from error
    model, report = loaded
    check_decoder(model, str(folder))
    report["mismatched_keys"] = [
        f"{key} {list(saved)} for {list(here)}" for key, saved, here in report["mismatched_keys"]
    ]
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise UserError(f"{folder} does not fit its config.json: {kind.replace('_', ' ')} {some(report[kind])}")
    if compressed:
        try:
            decompress(model, dequantised=dequantised)
        except MISTAKES as error:
            raise UserError(f"{folder} holds codes that cannot be read: {first_line(error)}") from error
    if compressed or not quantised:
        check_finite(model, folder)
    return model.to(target).eval()


def _check_quantize(folder: Path, config: dict[str, Any], quantize: Int8) -> None:
    """Raises UserError if torchao cannot round the weights of a folder's model."""
    if is_quantised(config):
        raise UserError(
            f"--quantize {quantize} is for models of floats, and {folder} is quantised already: leave it out"
        )
    if config.get("num_experts") or config.get("num_local_experts"):
        raise UserError(
            f"--quantize {quantize} is for models without experts, whose matrices torchao leaves as they are, and "
            f"{folder} has some: `stellarbyte quantize` rounds them"
        )


def device_named(name: str | None) -> torch.device:
    """The device of a name, or CUDA if there is one. Raises UserError if it is not there."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name is None else name)
        torch.ones(1, device=device).item()  # of the device meta nothing can be read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = first_line(error).partition(". ")[0]  # torch goes on with all its backends
        raise UserError(f"--device {name} is not available here: {why}") from error
    return device


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises UserError if there is no such folder or file, or it is not a JSON object."""
    if not (folder / "config.json").is_file():
        missing = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise UserError(f"{folder} {missing}: give a model's Hugging Face folder")
    config = read_json_object(folder / "config.json")
    for name, most in _MOST.items():
        if isinstance(config.get(name), int) and config[name] > most:
            raise UserError(f"{folder / 'config.json'}: {name} {shown(config[name])} is more than {most}")
    return config


@contextlib.contextmanager
def _no_report() -> Iterator[None]:
    """Hides Transformers' reports on weights that do not fit and on old pickles; our errors say it in a sentence."""
    logger = logging.getLogger("transformers.modeling_utils")

    def passes(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in str(record.msg)

    logger.addFilter(passes)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    finally:
        logger.removeFilter(passes)


def _check_generation(folder: Path) -> None:
    """Refuses a generation_config.json that Transformers would silently ignore, or fail on later."""
    path = folder / "generation_config.json"
    if not os.path.lexists(path):
        return
    fields = read_json_object(path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = fields.get(name)
        for number in given if isinstance(given, list) else [] if given is None else [given]:
            if not is_whole(number, 0):
                raise UserError(f"{path}: {name} has {shown(number)}, expected numbers of tokens, from 0")


def weight_files(folder: Path, config: dict[str, Any], *, only_floats: bool = True) -> dict[str, str]:
    """The file of each tensor, once the safetensors files and their index are checked against each other.

    It is empty if there are no such files. only_floats: whether a model of ours may hold floats alone.

    Raises:
        UserError: the files contradict each other or config.json.
    """
    listed = None if (folder / _WHOLE).exists() else _read_index(folder / INDEX)
    if listed is None and not (folder / _WHOLE).exists():
        return {}  # Transformers reports what is missing
    only_floats &= config.get("model_type") == ByteConfig.model_type
    home: dict[str, str] = {}
    for name in [_WHOLE] if listed is None else dict.fromkeys(listed.values()):
        for key, header in read_header(folder / name).items():
            home[key] = name
            if only_floats and header.dtype not in _FLOATS:
                raise UserError(
                    f"{folder / name} holds {key} as {header.dtype}, expected one of {', '.join(_FLOATS)}: save "
                    "or export the model again"
                )
    for key in sorted({*listed, *home}) if listed is not None else ():
        there, found = (files.get(key, "no file") for files in (listed or {}, home))
        if there != found:
            raise UserError(
                f"{folder / INDEX} places {key} in {there}, but it is in {found}: fetch or save the folder again"
            )
    for name in _LAYERS:
        if isinstance(config.get(name), int) and config[name] > len(home):
            raise UserError(
                f"{folder / 'config.json'}: {name} {config[name]} is more than there are tensors, {len(home)}: save or "
                "export the model again"
            )
    return home


def _read_index(path: Path) -> dict[str, str] | None:
    """The file of each tensor, all of them in the index's folder; None if there is no index."""
    if not path.exists():
        return None
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: weight_map is {shown(weight_map)}, expected the file of each tensor")
    return {key: check_plain_name(name, f"{path}: weight_map") for key, name in weight_map.items()}


def check_finite(model: torch.nn.Module, where: Path) -> None:
    """Raises UserError, naming the first weight with NaN or infinite numbers, which would make the output nonsense."""
    for name, weight in model.named_parameters():
        numbers = getattr(weight, "scale", weight)  # of a weight that torchao has rounded, its scales
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(numbers).all():
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
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        if os.path.lexists(folder / name):
            content = read_json_object(folder / name)  # it bounds the file's size and depth; Transformers does not
            if name == "tokenizer.json":
                check_tokenizer(content, str(folder / name))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        with works(str(folder)):
            tokenizer(_PROBE)
            ids = tokenizer(_PROBE, add_special_tokens=False).input_ids
    except UserError:
        raise
    except Exception as error:  # tokenizers raises the bare class for a damaged tokenizer.json
        if not any(file.name.startswith(_VOCABULARIES) or file.suffix == ".tiktoken" for file in folder.iterdir()):
            raise UserError(f"{folder} holds no tokenizer: copy the one there that the model learnt with") from error
        raise UserError(f"{folder} holds no tokenizer that can be loaded: {first_line(error)}") from error
    if not ids:
        raise UserError(f"{folder} holds a tokenizer that makes no tokens of a text: take the one of the model")
    return tokenizer


def first_line(error: BaseException) -> str:
    """An error's first line; for a failed field validation all lines in one, since the second says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines if isinstance(error, StrictDataclassError) else lines[:1])


def some(names: Any) -> str:
    """The first few of many names, to put into a sentence."""
    ordered = sorted(map(str, names))
    return f"{ordered[:3]}{f' and {len(ordered) - 3} more' if len(ordered) > 3 else ''}"
