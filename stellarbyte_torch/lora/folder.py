"""Reads an adapter's folder without trusting it: config and weights are compared before a model is involved."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from stellarbyte.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_not_pickled
from stellarbyte.errors import UserError
from stellarbyte.file_manifest import check_files
from stellarbyte.reading import MIB, expanded, read_json_object
from stellarbyte.safetensors_header import TensorHeader, read_header
from stellarbyte_torch.lora.config import LoRAConfig

GIB = 1 << 30
# The largest file that is read whole. The largest heads and embeddings trained beside an adapter take about 10 GiB.
MOST_BYTES = 64 * GIB
_FLOATS = ("F64", "F32", "F16", "BF16")


class AdapterFolder(NamedTuple):
    """An adapter's folder on this machine, its config, and its weights by PEFT's keys."""

    folder: Path
    config: LoRAConfig
    weights: dict[str, torch.Tensor]


def read_adapter(source: str | Path, device: torch.device) -> AdapterFolder:
    """The adapter in a folder in PEFT's format, or with a Hub id.

    Raises UserError if there is none, or it is pickled, broken or not a LoRA, or holds a value that is not finite.
    """
    folder = _folder(source)
    config = read_config(folder)
    check_not_pickled(folder)
    with _told_of(folder):
        check_files(folder)
        return AdapterFolder(folder, config, _read_weights(folder, config, device))


def read_config(folder: Path) -> LoRAConfig:
    """The config in a folder's adapter_config.json. Raises UserError if there is none, or it is not a LoRA's."""
    if not (folder / ADAPTER_CONFIG).exists():
        raise UserError(f"{folder} holds no {ADAPTER_CONFIG}: give a folder in PEFT's format")
    with _told_of(folder):
        fields = read_json_object(folder / ADAPTER_CONFIG, 16 * MIB)
        fields.pop("runtime_config", None)  # it is about the machine that saved it; PEFT leaves it out, too
        LoRAConfig.check_names(fields)
        return LoRAConfig.from_peft_type(**fields)


@contextmanager
def _told_of(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder} holds an adapter that cannot be loaded: {error}") from error


def _read_weights(folder: Path, config: LoRAConfig, device: torch.device) -> dict[str, torch.Tensor]:
    path = folder / ADAPTER_WEIGHTS
    _check_header(read_header(path), config, path)
    try:
        weights = load_file(path, device=str(device))
    except (SafetensorError, OSError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for key, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(f"{path} holds a value in {key} that is no finite number: train or save the adapter again")
    return weights


def _folder(source: str | Path) -> Path:
    """The folder itself, or the local folder into which the Hub's files have been downloaded."""
    folder = expanded(source)
    if folder.is_dir():
        return folder
    name = str(source)
    if isinstance(source, Path) or folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UserError(f"{source} is not a folder and so holds no {ADAPTER_CONFIG}: give a folder in PEFT's format")
    try:
        hf_hub_download(name, ADAPTER_WEIGHTS)
        return Path(hf_hub_download(name, ADAPTER_CONFIG)).parent
    except (OSError, ValueError, HFValidationError, HfHubHTTPError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{name} is neither a folder here nor an adapter that the Hub gives: {first_line}") from error


def _check_header(tensors: dict[str, TensorHeader], config: LoRAConfig, path: Path) -> None:
    """Raises UserError if the header contradicts the config. It comes first: PEFT would allocate any rank given."""
    nbytes = max((tensor.end for tensor in tensors.values()), default=0)
    if nbytes > MOST_BYTES:
        raise UserError(f"{path} has {nbytes / GIB:.0f} GiB, and {MOST_BYTES // GIB} are the most that are read")
    factors = {key: tensor for key, tensor in tensors.items() if "lora_" in key}
    if not tensors:
        raise UserError(f"{path} holds no tensor at all: save the adapter again")
    for key, tensor in factors.items():
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{path} holds {key} as {tensor.dtype}, expected one of {', '.join(_FLOATS)}: save it so")
    widest = max((size for tensor in factors.values() for size in tensor.shape), default=0)
    ranks = {"r": config.r, **{f"rank_pattern[{key!r}]": rank for key, rank in (config.rank_pattern or {}).items()}}
    for field, rank in ranks.items():
        if rank > widest and factors:
            raise UserError(
                f"{field} is {rank}, and no tensor of the adapter is wider than "
                f"{widest}: config and weights are of different adapters"
            )
