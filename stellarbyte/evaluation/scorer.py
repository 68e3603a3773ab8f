"""What an evaluation needs of a model, of either wing."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from stellarbyte.errors import UserError


@dataclass(frozen=True)
class Encoded:
    """The tokens of a text.

    ids: int64 [N], without any token before or behind the text; what is spelt like a special token is text. starts:
    int64 [N], the byte of the text with which each token begins.
    """

    ids: np.ndarray
    starts: np.ndarray


class TokenScores(NamedTuple):
    """What a model thinks of the labels, [B, T]; where there is no label the numbers mean nothing.

    log_p_BT: log-probability of the label, in nats. top_BT: log-probability of the likeliest token. hit_BT: whether
    that is the label; among equals the lowest id is the likeliest.
    """

    log_p_BT: np.ndarray
    top_BT: np.ndarray
    hit_BT: np.ndarray


class Scorer(Protocol):
    """A model that is ready to score tokens.

    Attributes:
        name: the model's path, for sentences.
        positions: the most tokens that it reads at once, max_position_embeddings.
        begin: the token before a text: bos or, where the tokenizer has none, eos.
        facts: what a report says of it, such as a run's step.
    """

    name: str
    positions: int
    begin: int
    facts: dict[str, Any]

    def encode(self, text: str) -> Encoded:
        """The tokens of a text. Raises UserError: the tokenizer fails on it, or gives what the model does not have."""
        ...

    def score(self, ids_BT: np.ndarray, labels_BT: np.ndarray, lengths_B: np.ndarray) -> TokenScores:
        """Scores rows.

        Args:
            ids_BT: int32 token ids; padding stands behind the tokens of a row.
            labels_BT: int32, the token that follows each; -100 where nothing is to be scored.
            lengths_B: the number of tokens of each row, from 1.
        """
        ...


def character_bytes(text: str) -> np.ndarray:
    """The bytes in UTF-8 of each character, int64 [C]."""
    codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (codes_C >= 0x80).astype(np.int64) + (codes_C >= 0x800) + (codes_C >= 0x10000)


def check_ids(ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Raises UserError where a tokenizer gives tokens that the model `name` does not have."""
    largest = int(np.max(ids, initial=0))
    if largest >= vocab_size:
        raise UserError(
            f"the tokenizer of {name} gives token {largest}, and the model's vocab_size is {vocab_size}: put the "
            "tokenizer there that the model was trained with"
        )
