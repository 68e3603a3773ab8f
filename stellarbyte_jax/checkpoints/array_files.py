"""Reads the arrays of a checkpoint item from Orbax's files, and checks their names, shapes and bits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.checkpoints.checksums import by_name, checksums
from stellarbyte_jax.checkpoints.orbax_noise import quieten_orbax, tensorstore_silenced
from stellarbyte_jax.checkpoints.s3_arrays import teach_orbax_s3

Tree = Any


def read_arrays(folder: Place, abstract: Tree) -> Tree:
    """The item in `folder` as a tree like `abstract` (jax.ShapeDtypeStruct leaves, or arrays), with its shardings.

    Each process reads only its own part, and waits for no other. `check_bits` then tells whether the bits are right.

    Raises:
        UserError: an array is missing, unknown, or of another shape or dtype.
        Exception: the files are damaged; `is_about_files` is true of this exception.
    """

    def target(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    check_fits(stored_tree(folder), abstract, folder)
    return _read(folder, jax.tree.map(target, abstract))


def check_fits(stored: Tree, abstract: Tree, where: str | Place) -> None:
    """Refuses arrays that are missing, unknown, or of another shape or dtype than the abstract ones.

    Raises:
        UserError: there is such an array; the error names it and `where` it is.
    """
    found, wanted = by_name(stored), by_name(abstract)
    for name in sorted(found.keys() | wanted.keys()):
        if name not in found:
            raise UserError(f"{where} lacks {name}, which this config asks for")
        if name not in wanted:
            raise UserError(f"{where} holds {name}, for which this config has no place")
        there, here = (f"{array.dtype}{list(array.shape)}" for array in (found[name], wanted[name]))
        if there != here:
            raise UserError(f"{where}: {name} is {there}, but this config makes it {here}")


def check_finite_weights(params: Tree, where: str | Place) -> None:
    """Refuses weights that are nan or infinite; if several processes hold parts of them, all must call it.

    Raises:
        UserError: there are such weights; the error names the array and `where` it is.
    """
    for name, array in by_name(params).items():
        module = np if isinstance(array, np.ndarray) else jnp
        if not bool(module.isfinite(array).all()):
            raise UserError(
                f"{where}: {name} has values that are nan or infinite: the model is broken, take an earlier checkpoint"
            )


def read_numpy_arrays(folder: Place, sums: Mapping[str, int]) -> Tree:
    """The item in `folder` as nested dicts of numpy arrays of any names and shapes; raises as `read_arrays` does."""

    # A numpy target makes Orbax return numpy arrays. Its contents are never read, so one broadcast zero is enough.
    def target(stored: Any) -> np.ndarray:
        return np.broadcast_to(np.zeros((), stored.dtype), stored.shape)

    arrays = _read(folder, jax.tree.map(target, stored_tree(folder)))
    check_bits(arrays, sums)
    return arrays


def check_bits(arrays: Tree, sums: Mapping[str, int]) -> None:
    """Raises an exception, of which `is_about_files` is true, unless the `checksums` of the arrays are `sums`.

    If several processes hold parts of the arrays, all must call it, and all find the same.
    """
    found = checksums(arrays)
    if found.keys() != sums.keys():
        raise ValueError(f"{min(found.keys() ^ sums.keys())} is not what was saved")
    for name, value in found.items():
        if value != sums[name]:
            raise ValueError(f"{name} does not have the bits that were saved")


def _this_process_alone() -> ocp.options.MultiprocessingOptions:
    # By default Orbax waits for all processes at the end of a read; one that cannot read would never get there.
    this = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=this, active_processes={this})


@contextmanager
def _reader() -> Iterator[ocp.StandardCheckpointer]:
    quieten_orbax()
    options = _this_process_alone()
    with tensorstore_silenced(), ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
        yield checkpointer


def orbax_path(folder: Place) -> epath.Path | Path:
    """The folder as Orbax knows it."""
    if not isinstance(folder, BucketPath):
        return folder.absolute()
    teach_orbax_s3()
    return epath.Path(str(folder))


def _read(folder: Place, target: Tree) -> Tree:
    with _reader() as checkpointer:
        return checkpointer.restore(orbax_path(folder), target)


def stored_tree(folder: Place) -> Tree:
    """The names, shapes and dtypes of the item in `folder`, as a tree of Orbax's ArrayMetadata."""
    with _reader() as checkpointer:
        metadata = checkpointer.metadata(orbax_path(folder)).item_metadata
    if metadata is None:
        raise ValueError(f"no list of the arrays in {folder}")
    return metadata.tree
