"""The questions that `verify` asks of each of two models; both answer layer by layer, in float32 on the CPU."""

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

# Rows of a batch whose next tokens make the loss that is differentiated: their logits are all held at once.
LOSS_ROWS = 2


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
        """Gradients of the mean loss of next tokens in the batch's first rows, from the head down.

        Yields (a stage's name, Hugging Face key -> gradient in the tensor's own shape). A tied head and the embedding
        are told apart: the first has the gradient that comes from the logits, the second that from the rows.
        """


class FolderSide(Side, Protocol):
    """A side that PyTorch computes, which can do so in bfloat16 as well."""

    def bfloat16_logits(self, batch: "Batch") -> np.ndarray:
        """The logits [B, C, V] at the batch's columns of the model that is computed in bfloat16."""


def pinned(tensors: Mapping[str, LazyTensor], budget: int) -> dict[str, LazyTensor]:
    """The tensors; the first that are read stay in memory, up to `budget` bytes, and are not read again."""
    kept: dict[str, np.ndarray] = {}
    room = budget

    def reader(key: str, tensor: LazyTensor) -> LazyTensor:
        def read() -> np.ndarray:
            nonlocal room
            if key in kept:
                return kept[key]
            values = tensor.read()
            if tensor.nbytes <= room:
                room -= tensor.nbytes
                kept[key] = values
            return values

        return LazyTensor(tensor.shape, tensor.dtype, read)

    return {key: reader(key, tensor) for key, tensor in tensors.items()}
