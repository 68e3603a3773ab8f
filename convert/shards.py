"""Writes and reads safetensors files as transformers does, one or several with an index, a tensor at a time."""

import errno
import functools
import hashlib
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from convert.given_folder import without_weights
from convert.names import Shape
from convert.safetensors_file import WORDS, layout
from convert.weights import DTYPES, LazyTensor
from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of, write_json
from stellarbyte.journal import Journal
from stellarbyte.read_ahead import read_ahead
from stellarbyte.reading import MIB, read_json
from stellarbyte.safetensors_header import data_begin, read_header

# Called with (bytes written, bytes in all).
Progress = Callable[[int, int], None]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_FILE = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")

# An index has about 100 bytes a tensor, so this is enough for 160,000 tensors.
_MOST_INDEX_BYTES = 16 * MIB

# What one call of the system writes, so that an interruption need not wait for long.
_MOST_WRITTEN = 64 << 20

# What is hashed at once: it stays in a core's cache.
_HASHED_BYTES = 1 << 20

# The most that is written and not hashed yet, so that the system has it in memory still.
_MOST_UNHASHED = 512 << 20

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class _Written(NamedTuple):
    """Where a tensor is in a file: its bytes from `begin` to `end`."""

    path: Path
    begin: int
    end: int


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
    progress: Progress,
    journal: Journal,
    about: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Writes the shards into `folder` tensor by tensor, and an index if there are several.

    Those that an interrupted command has written, by the journal, stay as they are.

    Args:
        tensors: key -> tensor, whose values are read once.
        folder: where to write.
        max_shard_size: the most bytes of a file; a larger tensor gets its own.
        progress: is called with the bytes that are written, and with the bytes in all.
        journal: where each shard is noted once it is whole.
        about: what each file's metadata say beside the format.

    Returns:
        File name -> sha256 of each shard.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
        UserError: a tensor cannot be read, or must not be written.
    """
    files = plan(tensors, max_shard_size)
    sizes = {name: sum(tensors[key].nbytes for key in keys) for name, keys in files.items()}
    done, total = 0, sum(sizes.values())
    hashes = {}
    for name in files.keys() & journal.done.keys():
        if _is_whole(folder / name, journal.done[name]):
            hashes[name] = journal.done[name]
            done += sizes[name]
            progress(done, total)
    if hashes:
        print(f"stellarbyte: going on: {len(hashes)} of {len(files)} files of weights are there", file=sys.stderr)
    layouts = {name: layout(tensors, keys, about) for name, keys in files.items() if name not in hashes}
    with closing(read_ahead(_carrying(tensors, folder, layouts), most_done=_MOST_UNHASHED)) as carried:
        for name, (header, keys) in layouts.items():
            sha256 = hashlib.sha256(header)
            for _, written in itertools.islice(carried, len(keys)):
                _hash(written, sha256)
                done += written.end - written.begin
                progress(done, total)
            hashes[name] = sha256.hexdigest()
            journal.note(name, hashes[name])
    if len(files) > 1:
        index = {
            "metadata": {
                "total_parameters": sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in tensors.values()),
                "total_size": total,
            },
            "weight_map": {key: name for name, keys in files.items() for key in keys},
        }
        write_json(folder / INDEX, index, sort_keys=True)
    return hashes


def _carrying(
    tensors: Mapping[str, LazyTensor], folder: Path, layouts: Mapping[str, tuple[bytes, list[str]]]
) -> Iterator[tuple[str, int, Callable[[], _Written]]]:
    """(key, bytes, function that reads the tensor and writes it to its place) of each tensor; makes the files."""
    for name, (header, keys) in layouts.items():
        (folder / name).write_bytes(header)
        begin, lock = len(header), Lock()
        for key in keys:
            yield key, tensors[key].nbytes, functools.partial(_carry, tensors[key], folder / name, begin, lock)
            begin += tensors[key].nbytes


def _carry(tensor: LazyTensor, path: Path, begin: int, lock: Lock) -> _Written:
    # The system lets one thread at a time write to a file, and the others would spin.
    with path.open("r+b", buffering=0) as file:
        file.seek(begin)
        for piece in tensor.pieces():
            unwritten = piece.reshape(-1).view(np.uint8).data
            while unwritten:
                with lock:
                    unwritten = unwritten[file.write(unwritten[:_MOST_WRITTEN]) or 0 :]
        end = file.tell()
    assert end == begin + tensor.nbytes
    return _Written(path, begin, end)


def _hash(written: _Written, sha256: "hashlib._Hash") -> None:
    """Adds to a hash what was written to a file. The system still has it in memory; this process has not."""
    piece = memoryview(bytearray(min(_HASHED_BYTES, written.end - written.begin)))
    with written.path.open("rb", buffering=0) as file:
        file.seek(written.begin)
        while (left := written.end - file.tell()) > 0:
            count = file.readinto(piece[:left])
            if not count:
                raise OSError(errno.EIO, "it has become shorter while it was written", str(written.path))
            sha256.update(piece[:count])


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return not path.is_symlink() and sha256_of(path) == sha256
    except OSError:
        return False


def read(folder: Path) -> dict[str, LazyTensor]:
    """Key -> tensor of every weight in `folder`. Headers are read now, values when a tensor is read.

    Raises:
        UserError: there are no weights, a shard is missing or broken, a key is in two files, or the index disagrees.
    """
    index_file = folder / INDEX
    if (folder / WEIGHTS).is_file():  # transformers prefers it as well
        return _merge([folder / WEIGHTS])[1]
    if not index_file.is_file():
        raise without_weights(folder, f"{WEIGHTS} nor {INDEX}")
    weight_map = _read_index(index_file)
    home, tensors = _merge(folder / name for name in sorted(set(weight_map.values())))
    for key in weight_map.keys() | tensors.keys():
        listed, found = weight_map.get(key, "no file"), home[key].name if key in home else "no file"
        if listed != found:
            raise UserError(
                f"{index_file} places {key} in {listed}, but it is in {found}: fetch or save the folder again"
            )
    return tensors


def identity(folder: Path) -> dict[str, list[int]]:
    """File name -> size and time of change of each file of weights in `folder`, to tell when one is another."""
    found = {path.name: path.stat() for path in sorted(folder.iterdir()) if WEIGHT_FILE.fullmatch(path.name)}
    return {name: [status.st_size, status.st_mtime_ns] for name, status in found.items()}


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = read_json(path, _MOST_INDEX_BYTES)
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
    tensors = {}
    headers = read_header(path)
    begin = data_begin(path)
    for key, header in headers.items():
        dtype = WORDS.get(header.dtype)
        if dtype is None:
            raise UserError(f"{path} holds {key} as {header.dtype}, expected one of {', '.join(DTYPES)}: save it so")
        reading = functools.partial(_read_values, path, begin + header.start, header.shape, dtype)
        tensors[key] = LazyTensor(header.shape, dtype, reading)
    return tensors


def _read_values(path: Path, begin: int, shape: Shape, dtype: np.dtype) -> np.ndarray:
    # The file is not memory-mapped, because pages of it that were read would count as memory of this process.
    values = np.empty(shape, dtype)
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        unread = values.reshape(-1).view(np.uint8).data
        while unread:
            count = file.readinto(unread)
            if not count:
                raise UserError(f"{path} has become shorter while it was read: fetch or save the folder again")
            unread = unread[count:]
    return values
