"""Decides which keys a pruned cache keeps: the one place of the rules that hold for every policy."""

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array

# The first tokens of a text, on which attention rests that finds nothing else (Xiao et al. 2023, arXiv:2309.17453).
SINKS = 4
# With fewer slots there would be little to choose from beside what is always kept.
FEWEST_SLOTS = 16

# Scores lie between what no window sees any longer and what is kept whatever its score; empty slots are below all.
_LARGEST, _UNSEEN = 3.0e38, -3.2e38


def room(slots: int) -> int:
    """The number of slots that pruning sets free, so that it is paid once for so many tokens."""
    return max(1, slots // 16)


def recent(slots: int) -> int:
    """The number of newest tokens that are always kept.

    With the first ones they fit into half of the slots, which a head has at least where heads share them.
    """
    return min(slots // 4, slots // 2 - room(slots) - SINKS)


def keep(
    scores_BKS: Array,
    index_BKS: Array,
    *,
    first_B: Array,
    length_B: Array,
    slots: int,
    window: int | None,
    coming_B: Array | None = None,
    limit_BK: Array | None = None,
    width: int | None = None,
) -> Array:
    """The key to be stored in each slot: int32 [B, K, C], the place of a candidate in S, or -1 for an empty slot.

    Rows with room for all keys, and for those that are coming, keep all. Other rows keep C - room(C) of each head: the
    highest scores; the newer of equals; always the newest tokens and the first ones, unless a sliding window has left
    them behind; and what the next token does not see only if nothing else is there. Kept keys stay in their order.

    Args:
        scores_BKS: the policy's scores of the candidates.
        index_BKS: the numbers of their tokens, rising with S where there is a key; -1: none.
        first_B: the number of the first token of each row's text; what stands before it is never seen again.
        length_B: the number of each row's next token.
        slots: C, the slots of each head.
        window: the model's sliding window.
        coming_B: the number of tokens that are to be stored next; none by default.
        limit_BK: the number of keys that each head keeps, where heads have not C slots each.
        width: the slots in the result; C by default.
    """
    xp = array_namespace(scores_BKS)
    S = index_BKS.shape[-1]
    first_B11, length_B11 = first_B[:, None, None], length_B[:, None, None]
    there_BKS = index_BKS >= 0
    unseen_BKS = index_BKS < first_B11
    if window is not None:
        unseen_BKS = unseen_BKS | (index_BKS <= length_B11 - window)
    always_BKS = (index_BKS < first_B11 + SINKS) | (index_BKS >= length_B11 - recent(slots))

    def number(value: float) -> Array:
        return xp.asarray(value, dtype=xp.float32)

    scores_BKS = xp.astype(scores_BKS, xp.float32)
    # A score that is no number is the lowest: the comparison is false.
    scores_BKS = xp.where(scores_BKS >= -_LARGEST, xp.minimum(scores_BKS, number(_LARGEST)), number(-_LARGEST))
    scores_BKS = xp.where(always_BKS, number(float("inf")), scores_BKS)
    scores_BKS = xp.where(unseen_BKS, number(_UNSEEN), scores_BKS)
    scores_BKS = xp.where(there_BKS, scores_BKS, number(float("-inf")))
    # Of equals the newer one comes later, as it stands later.
    best_last_BKS = xp.argsort(_in_order(scores_BKS), axis=-1, stable=True)

    count_BK1 = xp.sum(xp.astype(there_BKS, xp.int32), axis=-1, keepdims=True)
    coming_B11 = 0 if coming_B is None else coming_B[:, None, None]
    if limit_BK is None:
        limit_BK1 = xp.where(count_BK1 + coming_B11 > slots, slots - room(slots), count_BK1)
    else:
        limit_BK1 = xp.minimum(limit_BK[..., None], count_BK1)
    width = slots if width is None else width
    # The best ones, in their order; all others get the place S, behind them.
    place_BKS = xp.cumulative_sum(xp.ones_like(index_BKS), axis=-1) - 1
    best_last_BKS = xp.astype(best_last_BKS, index_BKS.dtype)
    kept_BKS = xp.where(place_BKS >= S - limit_BK1, best_last_BKS, place_BKS * 0 + S)
    source_BKS = xp.sort(kept_BKS, axis=-1, stable=False)[..., :width]
    source_BKS = xp.where(source_BKS < S, source_BKS, source_BKS * 0 - 1)
    if width <= S:
        return source_BKS
    none = xp.broadcast_to(source_BKS[..., :1] * 0 - 1, (*source_BKS.shape[:2], width - S))
    return xp.concat([source_BKS, none], axis=-1)


def _in_order(scores_BKS: Array) -> Array:
    """Integers in the order of these numbers, float32: XLA sorts them several times as fast."""
    xp = array_namespace(scores_BKS)
    scores_BKS = xp.where(scores_BKS == 0, xp.zeros_like(scores_BKS), scores_BKS)  # -0 is no less than 0
    bits_BKS = scores_BKS.view(xp.int32)
    return xp.where(bits_BKS < 0, bits_BKS ^ 0x7FFFFFFF, bits_BKS)
