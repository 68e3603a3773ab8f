"""Compares the tensors of two models: their keys, their shapes, and a hash of each one's bits."""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from convert.verifying.checks import Check
from convert.weights import LazyTensor
from stellarbyte.read_ahead import read_ahead

Tensors = Mapping[str, LazyTensor]


def compare_keys(ours: Tensors, theirs: Tensors, names: tuple[str, str]) -> Check:
    """Whether both have the same keys, with the same shapes and dtypes; `names` are the sides' in sentences."""
    first, second = names
    differences = [f"{second} lacks {key}, which {first} has" for key in ours if key not in theirs]
    differences += [f"{first} has no {key}, which {second} holds" for key in theirs if key not in ours]
    differences += [
        f"{key} is {_kind(ours[key])} in {first}, but {_kind(theirs[key])} in {second}"
        for key in ours.keys() & theirs.keys()
        if _kind(ours[key]) != _kind(theirs[key])
    ]
    parameters = sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in ours.values())
    shown = f"{len(ours)} tensors, {parameters:,} parameters"
    figures = {"tensors": len(ours), "parameters": parameters}
    return Check("keys and shapes", shown, figures, sorted(differences))


def compare_bits(ours: Tensors, theirs: Tensors, names: tuple[str, str], used: Callable[[int], None]) -> Check:
    """Whether the tensors that both have in one shape and dtype are the same, bit for bit.

    used: called with the bytes of each tensor that has been hashed.
    """
    keys = [key for key in ours if key in theirs and _kind(ours[key]) == _kind(theirs[key])]
    hashes: dict[str, list[str]] = {key: [] for key in keys}
    # The threads hash what they have read, and large tensors are read one at a time.
    work = [(key, side[key].nbytes, partial(_sha256, side[key])) for key in keys for side in (ours, theirs)]
    for key, digest in read_ahead(work):
        hashes[key].append(digest)
        used(ours[key].nbytes)
    differences = [f"the values of {key} are not those of {names[0]}" for key, (a, b) in hashes.items() if a != b]
    figures: dict[str, Any] = {"sha256": hashes}
    return Check("sha256 of each tensor", f"{len(hashes)} tensors bit for bit", figures, differences)


def _sha256(tensor: LazyTensor) -> str:
    # The values are viewed as bytes, because Python's buffers do not know bfloat16.
    values = np.ascontiguousarray(tensor)
    return hashlib.sha256(values.reshape(-1).view(np.uint8).data).hexdigest()


def _kind(tensor: LazyTensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}"
