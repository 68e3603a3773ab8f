"""Carries a model's parameters between JAX's stacked arrays and Hugging Face's flat tensors, bit for bit."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from convert import names
from convert.casting import cast
from convert.names import HFTensor, Path, Shape
from convert.transposing import transposed, transposed_pieces
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
    """A tensor that makes its values only when it is read, so that a model is never held twice.

    in_pieces: makes the same values as `read`, in their order, a piece at a time: each is there until the next is asked
        for. None if they are made all at once.
    """

    shape: Shape
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    in_pieces: Callable[[], Iterator[np.ndarray]] | None = None

    def pieces(self) -> Iterator[np.ndarray]:
        """The values in their order, as one array or several; each is there until the next is asked for."""
        yield from (self.read(),) if self.in_pieces is None else self.in_pieces()

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        values = self.read()
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        assert dtype in (None, self.dtype), "converting to another dtype is for the caller to say"
        return values.copy() if copy else values


@dataclass(frozen=True)
class LazyArray:
    """A parameter of JAX's that makes its values only when they are read: `array[layer]`, or `np.asarray(array)`."""

    shape: Shape
    dtype: np.dtype
    read: Callable[[int | None], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The number of bytes of the values."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.read(layer)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        del copy  # every call makes one
        assert dtype in (None, self.dtype), "converting to another dtype is for the caller to say"
        return self.read(None)


def to_hf(
    params: Params,
    config: ByteConfig,
    dtype: str | None = None,
    where: str = "the checkpoint",
    zeros: MutableMapping[str, int] | None = None,
) -> dict[str, LazyTensor]:
    """The Hugging Face tensors of a model, in transformers' order; values are transposed and cast only when read.

    Channels of pruned heads, and those behind the width of a feed-forward network, are left out. The model computes
    nothing from them, so it stays the same. `from_hf` puts zeros there, so other values do not come back.

    Args:
        params: a nested dict of arrays, with layers stacked on the first axis: numpy's, or others of which
            `array[layer]` and `np.asarray(array)` are numpy arrays, which are read when a tensor is.
        config: the model's config, which says what parameters there must be.
        dtype: a name in `DTYPES` (parameters that the table keeps in float32 stay so); None keeps each array's own.
        where: names the source of `params` in errors.
        zeros: takes the number of values of each tensor that `dtype` has made zero, once it is read.

    Raises:
        UserError: a parameter is unknown, missing, misshapen, or not of a floating-point type of `DTYPES`; when it is
            read, also if it has values beyond the largest of `dtype`.
    """
    arrays = dict(flatten(params))
    expected = {"/".join(path): shape for path, shape in names.jax_shapes(config).items()}
    check_names((("/".join(path), array.shape) for path, array in arrays.items()), expected, where)
    for path, array in arrays.items():
        check_dtype("/".join(path), array.dtype, where)

    def lazy(tensor: HFTensor) -> LazyTensor:
        array = arrays[tensor.path]
        wanted = np.dtype(array.dtype) if dtype is None else DTYPES["float32" if tensor.keep_float32 else dtype]

        def values() -> np.ndarray:
            found = np.asarray(array if tensor.layer is None else array[tensor.layer])[tensor.kept]
            return cast(found, wanted, tensor.key, where, zeros)

        def read() -> np.ndarray:
            return _transposed(values(), tensor)

        def pieces() -> Iterator[np.ndarray]:
            return transposed_pieces(values())

        return LazyTensor(tensor.shape, wanted, read, pieces if tensor.transpose else None)

    return {tensor.key: lazy(tensor) for tensor in names.hf_tensors(config)}


def from_hf(
    tensors: Mapping[str, Tensor], config: ByteConfig, dtype: str | None = None, where: str = "the weights"
) -> Params:
    """The inverse of `to_hf`: the parameters as a nested dict of LazyArrays, which read tensors when they are read.

    What Hugging Face has no values for, pruned heads and channels behind a layer's width, gets zeros.

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
    parts: dict[Path, list[HFTensor]] = {}
    for tensor in wanted:
        check_dtype(tensor.key, tensors[tensor.key].dtype, where)
        first = parts.setdefault(tensor.path, [tensor])[0]
        if tensor is not first:
            parts[tensor.path].append(tensor)
        there, before = (np.dtype(tensors[each.key].dtype) for each in (tensor, first))
        if dtype is None and there != before:
            raise UserError(
                f"{where} holds {tensor.key} as {there}, but layer 0 as {before}: save all layers in one dtype"
            )

    def lazy(path: Path, shape: Shape) -> LazyArray:
        layers = parts[path]
        target = DTYPES[dtype] if dtype else np.dtype(tensors[layers[0].key].dtype)

        def of_layer(tensor: HFTensor) -> np.ndarray:
            values = cast(_transposed(np.asarray(tensors[tensor.key]), tensor), target, tensor.key, where)
            whole = shape if tensor.layer is None else shape[1:]
            if values.shape == whole:
                return values
            filled = np.zeros(whole, target)
            filled[tensor.kept] = values
            return filled

        def read(layer: int | None) -> np.ndarray:
            if layer is not None or layers[0].layer is None:
                return of_layer(layers[layer or 0])
            stacked = np.empty(shape, target)
            for index, tensor in enumerate(layers):
                stacked[index] = of_layer(tensor)
            return stacked

        return LazyArray(shape, target, read)

    return unflatten({path: lazy(path, shape) for path, shape in names.jax_shapes(config).items()})


def _transposed(values: np.ndarray, tensor: HFTensor) -> np.ndarray:
    return transposed(values) if tensor.transpose else np.ascontiguousarray(values)


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
