"""Writes a checkpoint's arrays part by part, for models that do not fit into memory: see `taken_over`."""

import math
import os
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from stellarbyte.journal import Journal
from stellarbyte.read_ahead import read_ahead
from stellarbyte_jax.checkpoints.array_specs import new_context, writing
from stellarbyte_jax.checkpoints.file_errors import is_about_files
from stellarbyte_jax.checkpoints.part_sums import part_sum
from stellarbyte_jax.checkpoints.stored_arrays import PIECE_BYTES, SMALL_BYTES, Tree

# Orbax's folder for what process 0 has written. It merges those of all processes into one.
WRITTEN = "ocdbt.process_0"

# The most of what is being packed and written at a time; a larger part is written alone.
_MOST_BYTES = 96 << 20


class _Part(NamedTuple):
    """What is read and written at once: a layer, or a whole array where that is small or has no layers."""

    name: str
    array: Any
    layer: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape if self.layer is None else self.array.shape[1:])

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.array.dtype).itemsize

    @property
    def key(self) -> str:
        return self.name if self.layer is None else f"{self.name}[{self.layer}]"

    def values(self) -> np.ndarray:
        return np.asarray(self.array if self.layer is None else self.array[self.layer])

    def sum_of(self, values: np.ndarray) -> int:
        return part_sum(values, (self.layer or 0) * values.size)


def write_arrays(
    folder: Path,
    tree: Tree,
    progress: Callable[[int, int], None] = lambda *_: None,
    journal: Journal | None = None,
) -> dict[str, int]:
    """Writes the arrays into `folder` as `taken_over` wants them; returns their `checksums`.

    Args:
        folder: where to write.
        tree: nested dicts of numpy's or JAX's arrays, or others of which `array[layer]` and `np.asarray(array)` are
            numpy arrays. Of three and more axes, the first is the layers'.
        progress: is called with the bytes that are written, and with the bytes in all.
        journal: where each part is noted once it is on disk. What it notes already is not read and written again.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    arrays = _by_name(tree)
    stores = _open(folder, arrays)
    parts = [part for name, array in arrays.items() for part in _parts(name, array)]
    noted = {} if journal is None else dict(journal.done)
    sums = dict.fromkeys(arrays, 0)
    writing: deque[tuple[_Part, int, Any]] = deque()
    done, total = 0, sum(part.nbytes for part in parts)

    def reader(part: _Part) -> Callable[[], np.ndarray | None]:
        return lambda: None if _is_there(part, stores, noted.get(part.key)) else part.values()

    def finish(part: _Part, found: int, commit: Any) -> None:
        nonlocal done
        if commit is not None:
            commit.result()
            if journal is not None:
                journal.note(part.key, found)
        sums[part.name] += found
        done += part.nbytes
        progress(done, total)

    try:
        for part, values in read_ahead((part, part.nbytes, reader(part)) for part in parts):
            if values is None:
                finish(part, noted[part.key], None)
                continue
            while writing and part.nbytes + sum(each.nbytes for each, *_ in writing) > _MOST_BYTES:
                finish(*writing.popleft())
            store = stores[part.name] if part.layer is None else stores[part.name][part.layer]
            commit = store.write(values, can_reference_source_data_indefinitely=True).commit
            writing.append((part, part.sum_of(values), commit))
        while writing:
            finish(*writing.popleft())
    except ValueError as error:
        raise _of_system(error) from error
    finally:
        for *_, commit in writing:  # what is still being written would come back after its folder is removed
            with suppress(Exception):
                commit.result()
    return {name: found % 2**32 for name, found in sums.items()}


def _open(folder: Path, arrays: dict[str, Any]) -> dict[str, ts.TensorStore]:
    context = new_context()
    folder.mkdir(exist_ok=True)
    opening = {}
    for name, array in arrays.items():
        dtype, is_cut = np.dtype(array.dtype), len(_parts(name, array)) > 1
        piece = (1, *_piece(array.shape[1:], dtype)) if is_cut else _piece(array.shape, dtype)
        spec = writing(folder / WRITTEN, name, array.shape, piece, dtype)
        opening[name] = ts.open(spec, create=True, open=True, context=context)
    return {name: store.result() for name, store in opening.items()}


def _by_name(tree: Tree, above: str = "") -> dict[str, Any]:
    """Dotted name -> array, in the order of JAX's trees."""
    found: dict[str, Any] = {}
    for name, value in sorted(tree.items()):
        found |= _by_name(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _parts(name: str, array: Any) -> list[_Part]:
    is_cut = len(array.shape) > 2 and math.prod(array.shape) * np.dtype(array.dtype).itemsize > SMALL_BYTES
    return [_Part(name, array, layer) for layer in (range(array.shape[0]) if is_cut else (None,))]


def _piece(shape: Sequence[int], dtype: np.dtype) -> tuple[int, ...]:
    """The shape of the pieces that an array is cut into: whole lines, as many as fit, and as many in each.

    The last piece takes as much room as the others.
    """
    piece = [max(1, size) for size in shape]
    for axis, size in enumerate(piece):
        below = math.prod(piece[axis + 1 :]) * dtype.itemsize
        pieces = math.ceil(size / max(1, PIECE_BYTES // below))
        piece[axis] = math.ceil(size / pieces)
        if piece[axis] > 1:
            break
    return tuple(piece)


def _is_there(part: _Part, stores: dict[str, ts.TensorStore], noted: int | None) -> bool:
    """Whether a part is on disk with the bits that were noted."""
    if type(noted) is not int or noted == 0:  # nothing at all reads as zeros
        return False
    store = stores[part.name] if part.layer is None else stores[part.name][part.layer]
    try:
        return part.sum_of(store.read().result()) == noted
    except Exception as error:
        if not is_about_files(error):
            raise
        return False


def _of_system(error: ValueError) -> Exception:
    """The system's own error where TensorStore tells of one, as it does of a full disk."""
    found = re.search(r"os_error_code='?(\d+)", str(error))
    if found is None:
        return error
    return OSError(int(found[1]), os.strerror(int(found[1])))
