"""Arrays in a checkpoint's files that are read a layer at a time, so that a model need not fit into memory."""

import math
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.array_files import Tree, is_about_files, orbax_path, stored_tree
from stellarbyte_jax.checkpoints.checksums import by_name, part_sum

# An array of up to so many bytes stays in memory once it has been read. `chunks` cuts larger ones into layers.
SMALL_BYTES = 4 << 20

# The most of one piece of a file: whoever reads a part of a piece reads all of it, and small pieces stay in the cache.
PIECE_BYTES = 8 << 20

# A piece's axes are cut at their divisors, so an axis without small ones is left whole.
_DIVISOR = 64


def chunks(tree: Tree) -> Tree:
    """Orbax's options for saving each array of a tree so that a layer of it can be read by itself.

    Arrays of three and more axes have their layers on the first.
    """
    return jax.tree.map(_chunks, tree)


def _chunks(array: Any) -> ocp.SaveArgs:
    if not isinstance(array, np.ndarray | jax.Array) or array.nbytes <= SMALL_BYTES or array.ndim < 2:
        return ocp.SaveArgs()
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape
    can_be_cut = all(size % _DIVISOR == 0 for size in shape[-2:])
    return ocp.SaveArgs(shard_axes=(0,) if array.ndim > 2 else (), chunk_byte_size=PIECE_BYTES if can_be_cut else None)


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
    """All of an array, read into memory of numpy's, which has huge pages; TensorStore's own has small ones."""
    values: np.ndarray = np.empty(store.shape, store.dtype.numpy_dtype)
    ts.array(values).write(store).result()
    return values


def open_arrays(folder: Place, sums: Mapping[str, int], refuse: Callable[[Exception], UserError]) -> Tree:
    """The item in `folder` as nested dicts of StoredArrays, of any names and shapes.

    sums: the `checksums` of its arrays. refuse: as StoredArray takes it.

    Raises:
        Exception: the files are missing or damaged; `is_about_files` is true of this exception.
    """
    tree = stored_tree(folder)
    listed = by_name(tree)
    if listed.keys() != sums.keys():
        raise ValueError(f"{min(listed.keys() ^ sums.keys())} is not what was saved")
    path, context = orbax_path(folder), ocp.type_handlers.get_ts_context()
    is_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(path)

    def opening(array: Any) -> Any:
        info = ocp.type_handlers.ParamInfo(name=array.name, parent_dir=path, ts_context=context)
        spec = ocp.type_handlers.get_json_tspec_read(info, use_ocdbt=is_ocdbt)
        return ts.open(ts.Spec(spec), read=True, open=True, context=context)

    stores = {name: opening(array) for name, array in listed.items()}
    arrays = {name: StoredArray(name, store.result(), sums[name], refuse) for name, store in stores.items()}
    for name, array in arrays.items():
        if (array.shape, array.dtype) != (tuple(listed[name].shape), listed[name].dtype):
            raise ValueError(f"{name} is not what was saved")
    return jax.tree.unflatten(jax.tree.structure(tree), list(arrays.values()))
