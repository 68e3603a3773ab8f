"""Arrays in a checkpoint's files that are read a layer at a time, so that a model need not fit into memory."""

import math
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import tensorstore as ts

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte.reading import read_json_object
from stellarbyte_jax.checkpoints.array_specs import new_context, reading
from stellarbyte_jax.checkpoints.file_errors import is_about_files
from stellarbyte_jax.checkpoints.part_sums import part_sum

Tree = Any

# An array of up to so many bytes stays in memory once it has been read. `chunks` cuts larger ones into layers.
SMALL_BYTES = 4 << 20

# The most of one piece of a file: whoever reads a part of a piece reads all of it, and small pieces stay in the cache.
PIECE_BYTES = 8 << 20

# What TensorStore reads of an array at a time.
_READ_BYTES = 2 * PIECE_BYTES

# Orbax's list of an item's arrays: some 250 bytes for each.
_LIST, _MOST_LIST_BYTES = "_METADATA", 16 << 20


class StoredArray:
    """An array in a checkpoint's files, for whoever takes its shape, its dtype, `array[layer]` and `np.asarray(array)`.

    What has been read is held against the array's checksum as soon as all of it has been read.

    Args:
        name: the array's dotted name.
        store: the open files.
        checksum: the sum of its bits, as `checksums` gives it.
        refuse: makes the error of what is wrong with the files.

    Raises:
        UserError: from reading, if the files are missing or damaged.
    """

    def __init__(
        self, name: str, store: ts.TensorStore, checksum: int, refuse: Callable[[Exception], UserError]
    ) -> None:
        self._name, self._store, self._checksum, self._refuse = name, store, checksum, refuse
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype: np.dtype = store.dtype.numpy_dtype
        self._lock = threading.Lock()
        self._sums: dict[int, int] = {}
        self._kept: np.ndarray | None = None
        self._unpacked: IO[bytes] | None = None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, layer: int) -> np.ndarray:
        assert 0 <= layer < self.shape[0]
        try:
            piece = self._store.chunk_layout.read_chunk.shape
            if self.nbytes > SMALL_BYTES and piece is not None and piece[0] == 1:
                return self._one(layer)
            with self._lock:
                return self._of_whole(layer)
        except Exception as error:
            raise self._told(error) from error

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        assert dtype in (None, self.dtype), "converting to another dtype is for the caller to say"
        del copy  # every call makes one
        try:
            return self._all()
        except Exception as error:
            raise self._told(error) from error

    def _one(self, layer: int) -> np.ndarray:
        values = _read(self._store[layer])
        found = part_sum(values, layer * values.size)
        with self._lock:
            self._sums[layer] = found
            if len(self._sums) == self.shape[0]:
                self._check(sum(self._sums.values()))
        return values

    def _all(self) -> np.ndarray:
        values = _read(self._store)
        self._check(part_sum(values))
        return values

    def _of_whole(self, layer: int) -> np.ndarray:
        """A layer of an array whose layers cannot be read one by one, as earlier versions saved large ones."""
        if self.nbytes <= SMALL_BYTES:
            if self._kept is None:
                self._kept = self._all()
            return self._kept[layer].copy()
        if self._unpacked is None:
            self._unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - it is there as long as the array
            self._all().reshape(-1).view(np.uint8).tofile(self._unpacked)
        count = math.prod(self.shape[1:])
        self._unpacked.seek(layer * count * self.dtype.itemsize)
        read = np.fromfile(self._unpacked, np.uint8, count * self.dtype.itemsize)
        return read.view(self.dtype).reshape(self.shape[1:])

    def _check(self, found: int) -> None:
        if found % 2**32 != self._checksum:
            raise ValueError(f"{self._name} does not have the bits that were saved")

    def _told(self, error: Exception) -> Exception:
        return self._refuse(error) if is_about_files(error) and not isinstance(error, UserError) else error


def _read(store: ts.TensorStore) -> np.ndarray:
    """All of an array, read into memory of numpy's, which has huge pages; TensorStore's own has small ones.

    TensorStore holds each piece of a file until it is copied. It gets a few of them to read at a time, so that it does
    not need as much memory as the array itself.
    """
    values: np.ndarray = np.empty(store.shape, store.dtype.numpy_dtype)
    pieces = store.chunk_layout.read_chunk.shape
    axis = next((axis for axis, size in enumerate(store.shape) if size > 1), None)
    piece = None if axis is None or pieces is None else pieces[axis]
    if axis is None or piece is None:
        ts.array(values).write(store).result()
        return values
    step = piece * max(1, _READ_BYTES * store.shape[axis] // max(1, piece * values.nbytes))
    for start in range(0, store.shape[axis], step):
        band = (*(slice(None),) * axis, slice(start, min(start + step, store.shape[axis])))
        ts.array(values[band]).write(store[band]).result()
    return values


def open_arrays(folder: Place, sums: Mapping[str, int], refuse: Callable[[Exception], UserError]) -> Tree:
    """The item in `folder` as nested dicts of StoredArrays, of any names and shapes.

    sums: the `checksums` of its arrays. refuse: as StoredArray takes it.

    Raises:
        Exception: the files are missing or damaged; `file_errors.is_about_files` is true of this exception.
    """
    paths = _paths(folder)
    if paths.keys() != sums.keys():
        raise ValueError(f"{min(paths.keys() ^ sums.keys())} is not what was saved")
    context = new_context()
    stores = {name: ts.open(reading(folder, name), read=True, open=True, context=context) for name in paths}
    tree: Tree = {}
    for name, (*above, last) in paths.items():
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = StoredArray(name, stores[name].result(), sums[name], refuse)
    return tree


def _paths(folder: Place) -> dict[str, tuple[str, ...]]:
    """Dotted name -> the keys that lead to it, of each array that Orbax has listed."""
    listed = read_json_object(folder / _LIST, _MOST_LIST_BYTES)["tree_metadata"].values()
    paths = [tuple(str(each["key"]) for each in entry["key_metadata"]) for entry in listed]
    return {".".join(path): path for path in paths}
