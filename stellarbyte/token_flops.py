"""What matmuls and attention cost, the one definition by which training, pruning, planning and reports count FLOPs."""

# The backward pass of a matmul is two matmuls of its size, or one if its weights are frozen and get no gradient.
FORWARD_AND_BACKWARD = 3
FORWARD_AND_BACKWARD_FROZEN = 2


def matmul_flops(numbers: int) -> int:
    """The FLOPs of one token's way through matrices of so many numbers; a multiply-add counts two."""
    return 2 * numbers


def score_flops(heads: int, key_dim: int, value_dim: int) -> int:
    """The FLOPs of one visible pair in each of `heads` heads: query times key, and weight times value.

    key_dim, value_dim: the channels of a key and of a value.
    """
    return 2 * heads * (key_dim + value_dim)


def visible_pairs(length: int, window: int | None, block: int = 1) -> int:
    """The number of (query, key) pairs of a row that are visible, or that lie in a block with a visible pair."""
    window = min(window or length, length)
    if block == 1:
        return window * (window + 1) // 2 + (length - window) * window
    block = min(block, length)
    pairs = 0
    for start in range(0, length, block):
        first_key = max(0, start - window + 1) // block * block
        pairs += (start + block - first_key) * block
    return pairs


def keys_seen(length: int, window: int | None) -> float:
    """The number of keys that a token of a row sees, itself included, on average over the row."""
    return visible_pairs(length, window) / length
