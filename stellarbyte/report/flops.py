"""The floating-point operations of a token, in training, prefill and decoding; a multiply-add counts two."""

from dataclasses import dataclass

# The parts in the order of tables. attention_projections: the matrices of queries, keys, values and outputs;
# attention_scores: queries times keys, and weights times values.
PARTS = (
    "attention_projections",
    "attention_scores",
    "feed_forward",
    "router",
    "experts",
    "shared_experts",
    "adapters",
    "head",
    "other",
)


@dataclass(frozen=True)
class Work:
    """The FLOPs of one token, on average over the tokens that are computed together.

    Attributes:
        length: in training and prefill, the tokens of a row; in decoding, the tokens in the cache before this one.
        total: all FLOPs of a token.
        parts: part -> FLOPs of a token over the whole model, in the order of PARTS.
        layers: the FLOPs of a token in each layer; the head is in none.
    """

    length: int
    total: float
    parts: dict[str, float]
    layers: tuple[float, ...]


@dataclass(frozen=True)
class Flops:
    """The FLOPs of a model; only matmuls count, and of attention only the visible pairs.

    Attributes:
        training: forward and backward, at the length of training, without work that is done again.
        recomputed: remat policy -> the FLOPs of a token that it does a second time, at that length.
        prefill: the forward pass over prompts of several lengths.
        decode: one token behind caches of several lengths.
        complete: whether every matmul is known; a family that we do not know may have others than its tensors tell.
    """

    training: Work
    recomputed: dict[str, float]
    prefill: tuple[Work, ...]
    decode: tuple[Work, ...]
    complete: bool
