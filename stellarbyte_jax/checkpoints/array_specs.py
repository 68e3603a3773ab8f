"""Where TensorStore finds the arrays of a checkpoint, and how it writes them, as Orbax would tell it.

Orbax and JAX take a second to import; whoever carries arrays from files to files needs no more of them than this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.checkpoints.s3_arrays import s3_kvstore

# Where the pieces of files lie, for up to some hundred thousand of them.
_CONTEXT = {
    "cache_pool#ocdbt": {"total_bytes_limit": 100_000_000},
    "file_io_concurrency": {"limit": 128},
    "file_io_sync": False,
}

# The most of one of the files that pieces are put into.
_FILE_BYTES = 2 << 30

# Small arrays' metadata lie among the names, all of which are in one node, in a database that one process writes.
_WRITTEN_ONCE = {
    "config": {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 100_000_000, "manifest_kind": "single"},
    "assume_config": True,
}

_CACHED = {"recheck_cached_data": False, "recheck_cached_metadata": False}


def new_context() -> ts.Context:
    """What the arrays of a checkpoint share while they are open.

    What is written goes to the disk when the system likes, as with any copy of files. If the power fails before, the
    checkpoint's sums tell.
    """
    return ts.Context(_CONTEXT)


def reading(folder: Place, name: str) -> ts.Spec:
    """The array of a name in an item's folder. A piece of it that is not there is an error, and no zeros."""
    kvstore = _database(_kvstore(folder), name)
    return ts.Spec({"driver": "zarr", "kvstore": kvstore, **_CACHED, "fill_missing_data_reads": False})


def writing(folder: Path, name: str, shape: Sequence[int], piece: Sequence[int], dtype: np.dtype) -> ts.Spec:
    """An array to be made of pieces that are not compressed."""
    names = _kvstore(folder)
    pieces = names | {"file_io_locking": {"mode": "non_atomic"}}  # nobody else writes a file of this name
    kvstore = _database(pieces, name) | {"manifest": names, "target_data_file_size": _FILE_BYTES, **_WRITTEN_ONCE}
    metadata = {"shape": list(shape), "chunks": list(piece), "compressor": None}
    spec = {"driver": "zarr", "kvstore": kvstore, **_CACHED, "store_data_equal_to_fill_value": True}
    return ts.Spec({**spec, "metadata": metadata, "dtype": dtype.name})


def _database(base: dict[str, Any], name: str) -> dict[str, Any]:
    return {"driver": "ocdbt", "base": base, "path": f"{name}/", "cache_pool": "cache_pool#ocdbt"}


def _kvstore(folder: Place) -> dict[str, Any]:
    """The folder in TensorStore's words."""
    if isinstance(folder, BucketPath):
        url = f"{folder}/"
        if url.startswith("s3://"):
            return s3_kvstore(url)
        return {"driver": "gcs", "bucket": folder.bucket, "path": url.removeprefix(f"gs://{folder.bucket}/")}
    return {"driver": "file", "path": f"{folder.absolute()}/"}
