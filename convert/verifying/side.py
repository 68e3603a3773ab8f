"""The questions that `verify` asks of each of two models; both answer layer by layer, in float32 on the CPU."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from convert.weights import LazyTensor

if TYPE_CHECKING:
    from convert.verifying.rows import Batch

TokenIds = list[int]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.norm.weight"

# What the gradients of a part of the head may take.
_STRIP_BYTES = 16 << 20


@dataclass(frozen=True)
class Stage:
    """The hidden states of each batch after a part of the model.

    name: "embedding", "layer 0" and so on, with arrays [B, C, D] at the batch's columns; "norm", with [B, T, D] at all
    positions; or "logits", with [B, C, V] at the columns.
    """

    name: str
    arrays: list[np.ndarray]


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation of S tokens of each prompt, past the end of the text, read through a cache.

    tokens_BS: the likeliest token at each place. hidden_BSD: the hidden states after the final norm that S tokens have
    which were read one by one. behind_BS: how much smaller than the likeliest token's logit that of the token is which
    was read; 0 where the likeliest was read. largest: the largest logit.
    """

    tokens_BS: np.ndarray
    hidden_BSD: np.ndarray
    behind_BS: np.ndarray
    largest: float


class Side(Protocol):
    """One of the two models."""

    name: str

    def walk(self, batches: Sequence["Batch"]) -> Iterator[Stage]:
        """The hidden states of the batches, stage by stage."""

    def continued(self, prompts: Sequence[TokenIds], count: int, given_BS: np.ndarray | None) -> Continuation:
        """Reads each prompt and `count` tokens more, one by one: those that are given, or those that it chooses."""

    def gradients(self, batch: "Batch") -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Gradients of the mean loss of next tokens at the batch's columns, from the head down.

        Yields (a stage's name, Hugging Face key -> gradient). A head's gradients come in `strips`, and the embedding's
        for the batch's tokens alone, in the order of their ids: others have none. A tied head and the embedding are
        told apart: the first has the gradient that comes from the logits, the second that from the rows.
        """


class FolderSide(Side, Protocol):
    """A side that PyTorch computes, which can do so in bfloat16 as well."""

    def bfloat16_logits(self, batch: "Batch") -> np.ndarray:
        """The logits [B, C, V] at the batch's columns of the model that is computed in bfloat16."""


def strips(rows: int, width: int) -> Iterator[slice]:
    """The parts in which the gradients of a head [rows, width] come."""
    height = max(1, _STRIP_BYTES // (4 * width))
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


class Pins:
    """Keeps tensors in memory, so that they are not read again: the first that are read, up to `budget` bytes.

    tensors: the same tensors, which are kept.
    """

    def __init__(self, tensors: Mapping[str, LazyTensor], budget: int) -> None:
        self._room, self._kept, self._lock = budget, dict[str, np.ndarray](), threading.Lock()
        self._all_fit = sum(tensor.nbytes for tensor in tensors.values()) <= budget
        self.tensors = {key: self._pinned(key, tensor) for key, tensor in tensors.items()}

    def _pinned(self, key: str, tensor: LazyTensor) -> LazyTensor:
        def read() -> np.ndarray:
            if key in self._kept:
                return self._kept[key]
            values = tensor.read()
            with self._lock:  # tensors are read in threads
                if tensor.nbytes <= self._room:
                    self._room -= tensor.nbytes
                    self._kept[key] = values
            return values

        return LazyTensor(tensor.shape, tensor.dtype, read)

    def let_go(self) -> None:
        """Makes room, and keeps no more, unless all of the tensors fit: then none is read twice."""
        if not self._all_fit:
            self._room = 0
            self._kept.clear()
