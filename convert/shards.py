"""Writes and reads safetensors files as transformers does, one or several with an index, a shard at a time."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from convert.weights import DTYPES, LazyTensor
from stellarbyte.errors import UserError
from stellarbyte.files import write_json
from stellarbyte.reading import read_json
from stellarbyte.safetensors_header import read_header

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

_SAFETENSORS_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(text: str) -> int:
    """The bytes of "500MB" or "5GB", in decimal units as in transformers. Raises UserError for other texts."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]B)\s*", text, re.IGNORECASE)
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise UserError(f"the shard size {text!r} is not a number with KB, MB, GB or TB: write 5GB, for example")
    return size


def plan(tensors: Mapping[str, LazyTensor], max_shard_size: int) -> dict[str, list[str]]:
    """File name -> keys. Files are filled in order up to `max_shard_size` bytes; a larger tensor gets its own file."""
    groups: list[list[str]] = []
    room = 0
    for key, tensor in tensors.items():
        if not groups or tensor.nbytes > room:
            groups.append([])
            room = max_shard_size
        groups[-1].append(key)
        room -= tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": keys for i, keys in enumerate(groups, start=1)}


def write(
    tensors: Mapping[str, LazyTensor],
    folder: Path,
    max_shard_size: int,
    progress: Callable[[int], object],
) -> None:
    """Writes the shards into `folder`, and an index if there are several; holds one shard in memory.

    `progress` is called with the bytes of each shard once it is on disk.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    files = plan(tensors, max_shard_size)
    for name, keys in files.items():
        arrays = {key: np.asarray(tensors[key]) for key in keys}
        try:
            save_file(arrays, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:
            raise UserError(f"{name} cannot be written to {folder}: {error}") from error
        # safetensors lets only the owner read the file; on a shared disk others need to read it as well.
        (folder / name).chmod(folder.stat().st_mode & 0o666)
        progress(sum(array.nbytes for array in arrays.values()))
    if len(files) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values()),
                "total_size": sum(tensor.nbytes for tensor in tensors.values()),
            },
            "weight_map": {key: name for name, keys in files.items() for key in keys},
        }
        write_json(folder / INDEX, index, sort_keys=True)


def read(folder: Path) -> dict[str, LazyTensor]:
    """Key -> tensor of every weight in `folder`. Headers are read now, values when a tensor is read.

    Raises:
        UserError: there are no weights, a shard is missing or broken, a key is in two files, or the index disagrees.
    """
    index_file = folder / INDEX
    if (folder / WEIGHTS).is_file():  # transformers prefers it as well
        return _merge([folder / WEIGHTS])[1]
    if not index_file.is_file():
        raise UserError(f"{folder} holds neither {WEIGHTS} nor {INDEX}: save the model there with save_pretrained")
    weight_map = _read_index(index_file)
    home, tensors = _merge(folder / name for name in sorted(set(weight_map.values())))
    for key in weight_map.keys() | tensors.keys():
        listed, found = weight_map.get(key, "no file"), home[key].name if key in home else "no file"
        if listed != found:
            raise UserError(
                f"{index_file} places {key} in {listed}, but it is in {found}: fetch or save the folder again"
            )
    return tensors


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = read_json(path)
    except UserError as error:
        raise UserError(f"{path} is not a readable JSON file ({error}): fetch or save the folder again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    # The index may come from a stranger, so it may only name files beside it.
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and WEIGHT_FILE.fullmatch(name) for name in weight_map.values()
    ):
        raise UserError(f"{path} has no weight_map of key to model-*.safetensors file: fetch or save the folder again")
    return weight_map


def _merge(files: Iterable[Path]) -> tuple[dict[str, Path], dict[str, LazyTensor]]:
    """(key -> its file, key -> tensor) over all the files."""
    home: dict[str, Path] = {}
    tensors: dict[str, LazyTensor] = {}
    for file in files:
        for key, tensor in read_file(file).items():
            if key in home:
                raise UserError(f"{key} is both in {home[key]} and in {file.name}: remove all but the right one")
            home[key] = file
            tensors[key] = tensor
    return home, tensors


def read_file(path: Path) -> dict[str, LazyTensor]:
    """Key -> tensor of one file. Raises UserError as `read` does."""
    headers = read_header(path)  # its sentences say more than safetensors' own
    try:
        file = safe_open(path, framework="np")  # memory-mapped, for as long as its tensors live
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): fetch or save it again") from error
    tensors = {}
    for key, header in headers.items():
        name = _SAFETENSORS_DTYPES.get(header.dtype)
        if name is None:
            raise UserError(f"{path} holds {key} as {header.dtype}, expected one of {', '.join(DTYPES)}: save it so")
        tensors[key] = LazyTensor(header.shape, DTYPES[name], lambda key=key: file.get_tensor(key))  # type: ignore[misc]
    return tensors
