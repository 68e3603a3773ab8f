"""The work of one pass of a model: its FLOPs, and the bytes of weights, keys and values that it has to move."""

from stellarbyte.report.architecture import Architecture, Attention, LayerGroup
from stellarbyte.report.flops import decode_work, prefill_work


def pass_work(
    architecture: Architecture, phase: str, batch: int, length: int, weight_bytes: float, cache_bytes: float
) -> tuple[float, float]:
    """(FLOPs, bytes) of a pass, prefill or decode.

    Each weight is read once, but of the embeddings only the tokens' rows, and of experts those that some token goes to,
    if tokens choose them evenly. Keys and values are read as far as they are visible, and those of new tokens written.

    Args:
        architecture: the model's.
        phase: prefill or decode.
        batch: rows.
        length: tokens of a prompt; in decoding, tokens in the cache.
        weight_bytes, cache_bytes: of one number.
    """
    tokens = batch * (length if phase == "prefill" else 1)
    work = prefill_work(architecture, length) if phase == "prefill" else decode_work(architecture, length)
    numbers: float = sum(weight.count for weight in architecture.outside if weight.part != "embedding")
    table = max((weight.count for weight in architecture.outside if weight.part == "embedding"), default=0)
    rows = min(tokens / (architecture.vocab_size or tokens), 1.0)
    numbers += table if architecture.tied else rows * table
    cached = 0.0
    for group in architecture.groups:
        numbers += len(group.layers) * _read(group, tokens)
        if group.attention is not None:
            cached += len(group.layers) * batch * _cached(group.attention, phase, length)
    return tokens * work.total, numbers * weight_bytes + cached * cache_bytes


def _read(group: LayerGroup, tokens: int) -> float:
    network, total = group.feed_forward, 0.0
    for weight in group.weights:
        share = 1.0
        if weight.part == "experts" and network is not None and network.experts:
            share = 1 - (1 - network.experts_per_token / network.experts) ** tokens
        total += weight.count * share
    return total


def _cached(attention: Attention, phase: str, length: int) -> float:
    """Numbers of keys and values of a row that a pass reads and writes."""
    a_token = attention.key_value_heads * (attention.head_dim + attention.value_dim)
    window = attention.window or length + 1
    return a_token * (min(length, window) if phase == "prefill" else min(length, window - 1) + 1)
