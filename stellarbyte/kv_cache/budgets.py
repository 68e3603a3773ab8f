"""How a budget of slots is shared out over layers, and over the heads of a layer."""

from itertools import pairwise
from typing import Any

from array_api_compat import array_namespace

from stellarbyte.errors import UserError, shown
from stellarbyte.kv_cache.evidence import Array
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import FEWEST_SLOTS, room

SHAPES = ("uniform", "pyramid", "entropy")

# Heads that share a layer's slots get them in lanes, of which the budget gives each head so many on average; none has
# fewer or more than these.
LANES, FEWEST_LANES, MOST_LANES = 8, 4, 16


def layer_slots(shape: str, slots: int, layers: int) -> tuple[int, ...]:
    """The slots of each kv head in each layer; their mean is `slots`.

    uniform: the same everywhere. pyramid: the first layer has half as many again, the last half as many, and those
    between lie on a line (PyramidKV: Cai et al. 2024, arXiv:2406.02069); never fewer than FEWEST_SLOTS. entropy: the
    same everywhere, a multiple of LANES, which the heads of the layer share (head_lanes).

    Raises:
        UserError: there is no such shape, or the slots are too few or no whole number.
    """
    if shape not in SHAPES:
        raise UserError(f"--kv-shape {shown(shape)} is unknown: use {', '.join(SHAPES)}")
    if not isinstance(slots, int):
        raise UserError(f"a budget of {shown(slots)} is no number of slots: give a whole one, from {FEWEST_SLOTS}")
    if slots < FEWEST_SLOTS:
        raise UserError(f"a budget of {slots} slots is too small for what is always kept: give at least {FEWEST_SLOTS}")
    if shape == "entropy":
        return (slots // LANES * LANES,) * layers
    if shape == "uniform" or layers == 1:
        return (slots,) * layers
    last = max(FEWEST_SLOTS, slots // 2)
    first = 2 * slots - last
    # What is rounded off in one layer is made up for in the next.
    ends = [0.0]
    for layer in range(layers):
        ends.append(ends[-1] + first + (last - first) * layer / (layers - 1))
    whole = [round(end) for end in ends]
    return tuple(end - start for start, end in pairwise(whole))


def goes_with(shape: str, policy: Policy) -> bool:
    """Whether the policy's scores say what the shape goes by: how widely a head looks."""
    return shape != "entropy" or bool(policy.needs)


def check_heads(config: Any) -> None:
    """Refuses heads that share slots if one of them is read by none. Raises UserError.

    config: that of a model of either side; PyTorch has no keys of such a head, and JAX has.
    """
    group = config.num_attention_heads // config.num_key_value_heads
    for layer, gone in enumerate(getattr(config, "pruned_heads", None) or ()):
        for head in range(config.num_key_value_heads):
            if {*range(head * group, (head + 1) * group)} <= {*gone}:
                raise UserError(
                    f"--kv-shape entropy deals slots out among kv heads, and kv head {head} of layer {layer} has lost "
                    "all that read it (model.pruned_heads): use another shape"
                )


def check_shape(shape: str, policy: Policy) -> None:
    """Raises UserError: the policy does not go with the shape."""
    if not goes_with(shape, policy):
        raise UserError(
            f"--kv-shape entropy goes by how widely heads look, which policy {policy.name} does not ask: use another "
            "policy, or another shape"
        )


def head_lanes(scores_BKS: Array, count_BK: Array, slots: int) -> Array:
    """The lanes of each kv head, int [B, K], by the entropy of its scores; they are LANES · K together.

    A head whose scores, made shares p of their sum, have the entropy h = -sum p log p looks at e^h keys. Each head
    gets FEWEST_LANES; the others go, one after another, to the head for which e^h, divided by one more than it has got
    of them, is largest, which makes lanes proportional to e^h (D'Hondt); up to MOST_LANES, and to what it has keys for.
    After Ada-KV (Feng et al. 2024, arXiv:2407.11550), which counts each head's scores among the largest of the layer.

    Args:
        scores_BKS: the policy's scores, 0 for empty slots.
        count_BK: the keys of each head, more than its slots.
        slots: the slots of a head on average.
    """
    xp = array_namespace(scores_BKS)
    B, K, _ = scores_BKS.shape
    zero = xp.asarray(0.0, dtype=xp.float32)
    scores_BKS = xp.where(scores_BKS > 0, xp.minimum(scores_BKS, xp.asarray(1e30, dtype=xp.float32)), zero)
    total_BK1 = xp.sum(scores_BKS, axis=-1, keepdims=True)
    shares_BKS = scores_BKS / xp.where(total_BK1 > 0, total_BK1, xp.ones_like(total_BK1))
    logs_BKS = xp.log(xp.where(shares_BKS > 0, shares_BKS, xp.ones_like(shares_BKS)))
    entropy_BK1 = -xp.sum(shares_BKS * logs_BKS, axis=-1, keepdims=True)

    # log(e^h / j) for the j-th lane that a head might get beside those that all get.
    extra_BKJ = xp.broadcast_to(xp.ones_like(entropy_BK1), (B, K, MOST_LANES - FEWEST_LANES))
    extra_BKJ = xp.cumulative_sum(extra_BKJ, axis=-1)
    most_BK1 = xp.astype(count_BK + room(slots), xp.float32)[..., None] / (slots // LANES)
    worth_BKJ = entropy_BK1 - xp.log(extra_BKJ)
    worth_BKJ = xp.where(extra_BKJ + FEWEST_LANES <= most_BK1, worth_BKJ, xp.asarray(-1e38, dtype=xp.float32))
    best_first_BJ = xp.argsort(-xp.reshape(worth_BKJ, (B, -1)), axis=-1, stable=True)
    rank_BKJ = xp.reshape(xp.argsort(best_first_BJ, axis=-1, stable=True), worth_BKJ.shape)
    won_BKJ = rank_BKJ < (LANES - FEWEST_LANES) * K
    return xp.sum(xp.astype(won_BKJ, xp.int32), axis=-1) + FEWEST_LANES
