"""What a pruned cache knows of the keys that it might keep: what policies judge by.

Arrays are JAX's or PyTorch's; the letters of their names are those of stellarbyte_jax/model/__init__.py, and W counts
the queries that are remembered.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

Array = Any

# The number of newest queries that a cache remembers for the policies that need "queries".
WINDOW_QUERIES = 32


class Rotation(NamedTuple):
    """What turns queries and keys at some positions, float32 [..., H / 2]: a value for each pair (i, i + H / 2)."""

    cos: Array
    sin: Array
    query_factor: Array
    key_factor: Array


@dataclass(frozen=True)
class QueryMoments:
    """Means over all queries of a row before they were turned, scaled by 1 / sqrt(H); float32."""

    mean_BKGH: Array
    second_BKGHH: Array  # the mean of q q^T


@dataclass(frozen=True)
class Evidence:
    """What a policy may ask for. What is None was not named in its `needs`, or the model has no such thing.

    Attributes:
        keys_BKSH: final keys, with the factors of their positions; float32.
        values_BKSH: values; float32.
        index_BKS: the number of each key's token in its row, rising with S; -1: there is no key.
        first_B: the number of the row's first token, or of its document's if several are packed; padding stands before.
        length_B: the number that the next token will have.
        offset_B: the position of a token, less its number.
        window: the model's sliding window.
        rotation: a function from positions to what turns queries and keys there; None without rotary positions.
        attention_BKS: the softmax weights that each key has got so far: summed over queries, the mean over the G heads.
        queries_BKGWH: the newest queries as they met the keys, turned, scaled by 1 / sqrt(H); float32.
        query_index_BW: the numbers of their tokens; -1: there is no query.
        moments: what is known of queries of any position.
    """

    keys_BKSH: Array
    values_BKSH: Array
    index_BKS: Array
    first_B: Array
    length_B: Array
    offset_B: Array
    window: int | None = None
    rotation: Callable[[Array], Rotation] | None = None
    attention_BKS: Array | None = None
    queries_BKGWH: Array | None = None
    query_index_BW: Array | None = None
    moments: QueryMoments | None = None
