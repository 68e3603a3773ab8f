"""Carries a model's Hugging Face tensors between our keys and those of a family's files, tensor by tensor."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from threading import Lock

import numpy as np

from convert import names
from convert.families.family import Experts, Family
from convert.names import Shape
from convert.weights import LazyTensor, check_names
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

# Of a layer: our keys, after "model.layers.N.".
_ROUTER, _GATE_UP, _DOWN = "mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"

# An expert, and those of its rows that are meant.
Place = tuple[int, slice]

# Old files hold the rotary frequencies of each layer, which every loader computes itself.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def to_stock(tensors: Mapping[str, LazyTensor], family: Family) -> dict[str, LazyTensor]:
    """The tensors by the family's names; an expert's are parts of ours, which are read once for all experts.

    `tensors` are those of a model that the family can hold, by our keys, layer after layer.
    """
    if family.experts is None:
        return dict(tensors)

    # The experts of a layer follow one another, and threads read them.
    whole, lock = lru_cache(maxsize=2)(lambda key: np.asarray(tensors[key])), Lock()

    def part(key: str, place: Place) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with lock:
                values = whole(key)
            return np.ascontiguousarray(values[place])

        return read

    renamed: dict[str, LazyTensor] = {}
    for key, tensor in tensors.items():
        for name, shape, place in _parts(key, tensor.shape, family.experts):
            renamed[name] = tensor if place is None else LazyTensor(shape, tensor.dtype, part(key, place))
    return renamed


def from_stock(
    tensors: Mapping[str, LazyTensor], config: ByteConfig, family: Family, where: str
) -> dict[str, LazyTensor]:
    """The tensors of a family's folder by our keys. What the family lacks of ours is 0.

    Files in which Transformers 5 has left the experts of a layer together, as they are here, are read as well.

    Args:
        tensors: key -> tensor as the files have it.
        config: the model's config, by `config_json.from_hf`.
        family: the family.
        where: names the folder in errors.

    Raises:
        UserError: a key is unknown, missing or misshapen; experts of a layer have different dtypes.
    """
    given = {key: tensor for key, tensor in tensors.items() if not _COMPUTED.fullmatch(key)}
    ours = {tensor.key: tensor.shape for tensor in names.hf_tensors(config)}
    zeros = {key: shape for key, shape in ours.items() if key.endswith(family.zeros)} if family.zeros else {}
    stored = {key: shape for key, shape in ours.items() if key not in zeros}
    experts = family.experts if not any(key.endswith(_GATE_UP) for key in given) else None
    pieces = {
        key: [(key, shape)] if experts is None else [(name, shape) for name, shape, _ in _parts(key, shape, experts)]
        for key, shape in stored.items()
    }
    expected = dict(chain.from_iterable(pieces.values()))
    check_names(((key, tensor.shape) for key, tensor in given.items()), expected, where)
    found = {key: _joined(key, ours[key], [given[name] for name, _ in pieces[key]], where) for key in stored}
    found |= {key: _zeros(shape, given[next(iter(pieces))].dtype) for key, shape in zeros.items()}
    return {key: found[key] for key in ours}


def _parts(key: str, shape: Shape, experts: Experts) -> Iterator[tuple[str, Shape, Place | None]]:
    """(the family's key, its shape, its place in ours) of each tensor that holds a part of ours; None: all of it."""
    if key.endswith(_ROUTER):
        yield key.removesuffix(_ROUTER) + experts.router, shape, None
    elif key.endswith(_GATE_UP):
        E, both, D = shape
        halves = (experts.gate, slice(0, both // 2)), (experts.up, slice(both // 2, both))
        for expert in range(E):
            for name, half in halves:
                yield key.removesuffix(_GATE_UP) + name.format(expert=expert), (both // 2, D), (expert, half)
    elif key.endswith(_DOWN):
        for expert in range(shape[0]):
            name = key.removesuffix(_DOWN) + experts.down.format(expert=expert)
            yield name, shape[1:], (expert, slice(None))
    else:
        yield key, shape, None


def _joined(key: str, shape: Shape, pieces: list[LazyTensor], where: str) -> LazyTensor:
    """One tensor of ours, made of the pieces in their order: the rows of each expert follow those of the one before."""
    if len(pieces) == 1 and pieces[0].shape == shape:
        return pieces[0]
    kinds = {str(piece.dtype) for piece in pieces}
    if len(kinds) > 1:
        raise UserError(f"{where} holds the parts of {key} as {' and '.join(sorted(kinds))}: save them in one dtype")

    def read() -> np.ndarray:
        values = np.empty((shape[0] * shape[1], shape[2]), pieces[0].dtype)
        row = 0
        for piece in pieces:
            values[row : row + piece.shape[0]] = np.asarray(piece)
            row += piece.shape[0]
        return values.reshape(shape)

    return LazyTensor(shape, pieces[0].dtype, read)


def _zeros(shape: Shape, dtype: np.dtype) -> LazyTensor:
    return LazyTensor(shape, dtype, lambda: np.zeros(shape, dtype))
