"""Checks weights before they are converted: they must be finite, and of a tied pair a folder holds one."""

from collections.abc import Iterator, Mapping

import numpy as np

from convert.weights import LazyTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError

# Values that are checked at once: they stay in a core's cache, and so does what is found of them.
_BLOCK = 1 << 16

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def one_of_tied(tensors: Mapping[str, LazyTensor], config: ByteConfig, where: str) -> dict[str, LazyTensor]:
    """The tensors with the embedding alone if the head is tied to it; some tools save both, or only the head.

    Raises:
        UserError: both are there and differ.
    """
    tensors = dict(tensors)
    if not config.tie_word_embeddings or _HEAD not in tensors:
        return tensors
    head = tensors.pop(_HEAD)
    embedding = tensors.setdefault(_EMBEDDING, head)
    if embedding is not head and not (
        embedding.shape == head.shape and np.array_equal(np.asarray(embedding), np.asarray(head), equal_nan=True)
    ):
        raise UserError(
            f"{where} holds {_HEAD} with other values than {_EMBEDDING}, but tie_word_embeddings is true: set it false "
            f"in config.json to keep both, or remove {_HEAD} to keep the embedding alone"
        )
    return tensors


def finite(tensors: Mapping[str, LazyTensor], where: str) -> dict[str, LazyTensor]:
    """The tensors; each raises UserError when it is read if not all of its values are finite."""

    def checked(key: str, tensor: LazyTensor) -> LazyTensor:
        def read() -> np.ndarray:
            values = tensor.read()
            check_finite(key, values, where)
            return values

        def pieces() -> Iterator[np.ndarray]:
            for piece in tensor.pieces():
                if _finite_values(piece) < piece.size:
                    read()  # which raises, with the number of them in all pieces
                yield piece

        return LazyTensor(tensor.shape, tensor.dtype, read, pieces)

    return {key: checked(key, tensor) for key, tensor in tensors.items()}


def check_finite(key: str, values: np.ndarray, where: str) -> None:
    """Raises UserError unless all of a tensor's values are finite numbers."""
    good = _finite_values(values)
    if good < values.size:
        raise UserError(
            f"{where} holds {key} with {values.size - good} of {values.size} values that are nan or infinite: "
            "the model is broken, take an earlier one"
        )


def _finite_values(values: np.ndarray) -> int:
    flat = values.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, flat.size, _BLOCK))
    return sum(int(np.count_nonzero(np.isfinite(block))) for block in blocks)
