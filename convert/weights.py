"""Carries a model's parameters between JAX's stacked arrays and Hugging Face's flat tensors, bit for bit."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from convert import names
from convert.names import HFTensor, Path, Shape
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

Params = dict[str, Any]  # nested: names lead to arrays

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class Tensor(Protocol):
    """A numpy array, a `LazyTensor`, or anything else with a shape, a dtype and values for `np.asarray`."""

    @property
    def shape(self) -> Shape: ...  # noqa: D102

    @property
    def dtype(self) -> np.dtype: ...  # noqa: D102

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that makes its values only when it is read, so that a model is never held twice."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        assert dtype in (None, self.dtype), "converting to another dtype is for the caller to say"
        return values.copy() if copy else values


def to_hf(
    params: Params, config: ByteConfig, dtype: str | None = None, where: str = "the checkpoint"
) -> dict[str, LazyTensor]:
    """The Hugging Face tensors of a model, in transformers' order; values are transposed and cast only when read.

    Channels of pruned heads are left out. The model computes nothing from them, so it stays the same. `from_hf` puts
    zeros there, so other values do not come back.

    Args:
        params: a nested dict of numpy or JAX arrays, with layers stacked on the first axis.
        config: the model's config, which says what parameters there must be.
        dtype: a name in `DTYPES` (parameters that the table keeps in float32 stay so); None keeps each array's own.
        where: names the source of `params` in errors.

    Raises:
        UserError: a parameter is unknown, missing, misshapen, or not of a floating-point type of `DTYPES`.
    """
    arrays = {path: np.asarray(leaf) for path, leaf in flatten(params)}
    expected = {"/".join(path): shape for path, shape in names.jax_shapes(config).items()}
    check_names((("/".join(path), array.shape) for path, array in arrays.items()), expected, where)
    for path, array in arrays.items():
        check_dtype("/".join(path), array.dtype, where)
    return {tensor.key: _lazy(arrays[tensor.path], tensor, dtype) for tensor in names.hf_tensors(config)}


def _lazy(array: np.ndarray, tensor: HFTensor, dtype: str | None) -> LazyTensor:
    wanted = array.dtype if dtype is None else DTYPES["float32" if tensor.keep_float32 else dtype]

    def read() -> np.ndarray:
        values = _of_layer(array, tensor)[tensor.kept]
        return np.ascontiguousarray(_transposed(values, tensor).astype(wanted, copy=False))

    return LazyTensor(tensor.shape, wanted, read)


def from_hf(
    tensors: Mapping[str, Tensor], config: ByteConfig, dtype: str | None = None, where: str = "the weights"
) -> Params:
    """The inverse of `to_hf`: the parameters as a nested dict of numpy arrays, filled one tensor at a time.

    Pruned heads have no values in Hugging Face and get zeros.

    Args:
        tensors: Hugging Face key -> array, or a `LazyTensor`, which is read when it is needed.
        config: the model's config, which says what tensors there must be.
        dtype: a name in `DTYPES`; None keeps the stored dtype, which must then be the same in all layers.
        where: names the source of `tensors` in errors.

    Raises:
        UserError: a key is unknown, missing, misshapen, or not of a floating-point type of `DTYPES`.
    """
    wanted = names.hf_tensors(config)
    check_names(((key, tensor.shape) for key, tensor in tensors.items()), {t.key: t.shape for t in wanted}, where)
    shapes = names.jax_shapes(config)
    arrays: dict[Path, np.ndarray] = {}
    for tensor in wanted:
        stored = tensors[tensor.key]
        check_dtype(tensor.key, stored.dtype, where)
        target = DTYPES[dtype] if dtype else np.dtype(stored.dtype)
        if tensor.path not in arrays:
            arrays[tensor.path] = np.zeros(shapes[tensor.path], target)
        array = arrays[tensor.path]
        if array.dtype != target:
            raise UserError(
                f"{where} holds {tensor.key} as {target}, but layer 0 as {array.dtype}: save all layers in one dtype"
            )
        _of_layer(array, tensor)[tensor.kept] = _transposed(np.asarray(stored), tensor)
    return unflatten(arrays)


def _of_layer(array: np.ndarray, tensor: HFTensor) -> np.ndarray:
    return array if tensor.layer is None else array[tensor.layer]


def _transposed(values: np.ndarray, tensor: HFTensor) -> np.ndarray:
    return values.swapaxes(-1, -2) if tensor.transpose else values


def check_names(found: Iterable[tuple[str, Shape]], expected: Mapping[str, Shape], where: str) -> None:
    """Refuses keys that are unknown, given twice, misshapen or missing; reads no values.

    Raises:
        UserError: naming the source, the key, both shapes, and the fix.
    """
    counts: Counter[str] = Counter()
    for key, shape in found:
        counts[key] += 1
        if key not in expected:
            raise UserError(f"{where} holds {key} of shape {_show(shape)}, which {_unknown(key, expected)}")
        if counts[key] > 1:
            raise UserError(f"{where} holds {key} more than once: remove all but the right one")
        if tuple(shape) != expected[key]:
            raise UserError(
                f"{where} holds {key} of shape {_show(shape)}, but this config gives it {_show(expected[key])}: "
                "use the config that the weights were trained with"
            )
    missing = [key for key in expected if key not in counts]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"{where} lacks {missing[0]} of shape {_show(expected[missing[0]])}{others}: "
            "use the config that the weights were trained with, or the whole set of weights"
        )


def check_dtype(key: str, dtype: np.dtype, where: str) -> None:
    """Raises UserError if a dtype is none of the floating-point types that models are saved in."""
    if dtype not in DTYPES.values():
        raise UserError(f"{where} holds {key} as {dtype}, expected one of {', '.join(DTYPES)}: save it as one of these")


def flatten(tree: Params, prefix: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) for every leaf of a nested dict, in its order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(dict(value), (*prefix, name))
        else:
            yield (*prefix, name), value


def unflatten(leaves: Mapping[Path, Any]) -> Params:
    """The inverse of `flatten`."""
    tree: Params = {}
    for path, leaf in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def _unknown(key: str, expected: Mapping[str, Shape]) -> str:
    if key in ("lm_head.weight", "lm_head/kernel"):
        return "a model with tie_word_embeddings true does not have: remove it, or set tie_word_embeddings false"
    near = difflib.get_close_matches(key, expected, n=1)
    return "is no parameter of this config" + (f": did you mean {near[0]}?" if near else "; remove it")


def _show(shape: Shape) -> str:
    return f"[{', '.join(map(str, shape))}]"
