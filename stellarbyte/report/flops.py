"""The floating-point operations of a token, in training, prefill and decoding; a multiply-add counts two."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stellarbyte.report.architecture import Architecture, Attention, LayerGroup, Weight
from stellarbyte.token_flops import (
    FORWARD_AND_BACKWARD,
    FORWARD_AND_BACKWARD_FROZEN,
    keys_seen,
    matmul_flops,
    score_flops,
)

# The parts in the order of tables. attention_projections: the matrices of queries, keys, values and outputs.
# attention_scores: queries times keys, and weights times values. other: matrices that no name tells.
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

# Tokens of prompts and caches that the tables have, as far as the model's context reaches.
LENGTHS = (128, 512, 2048, 8192, 32768, 131072)
# The matrix that makes keys and values of a cache's latent vectors.
_OF_LATENTS = "kv_b_proj"
# A row of training where no run says it, and the context where no config says it.
TRAINING_LENGTH = 4096


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
    """The FLOPs of a model: matmuls, of attention the visible pairs, and of experts those that work on a token.

    Attributes:
        training: forward and backward, at the length of training, without work that is done again.
        recomputed: remat policy -> the FLOPs of a token that it computes a second time, at that length; empty where the
            family's training is not known.
        prefill: the forward pass over prompts of several lengths, with logits of the last token alone.
        decode: one token behind caches of several lengths.
        rotation: the FLOPs by which rotary positions turn one token's queries and keys in a forward pass. They are
            elementwise, and in no other figure.
        complete: whether all matrices have a name that tells their work.
    """

    training: Work
    recomputed: dict[str, float]
    prefill: tuple[Work, ...]
    decode: tuple[Work, ...]
    rotation: float
    complete: bool


def count_flops(
    architecture: Architecture, fields: Mapping[str, Any], length: int | None = None, adapters: bool = False
) -> Flops | None:
    """The FLOPs of a model, or None if it is not known how it attends.

    Args:
        architecture: its structure.
        fields: those of config.json, which say how much of a head turns.
        length: the tokens of a row of training; by default the context, or TRAINING_LENGTH if that is shorter.
        adapters: whether only adapters are trained.
    """
    attends = [any(weight.part.startswith("attention_") for weight in group.weights) for group in architecture.groups]
    if not all(group.attention or not has for group, has in zip(architecture.groups, attends, strict=True)):
        return None
    context = architecture.context or TRAINING_LENGTH
    length = length or min(context, TRAINING_LENGTH)
    prompts = sorted({at for at in LENGTHS if at < context} | {context})
    caches = sorted({at for at in LENGTHS if at < context} | {context - 1})
    weights = [*architecture.outside, *(weight for group in architecture.groups for weight in group.weights)]
    return Flops(
        training=_work(architecture, length, _seen_on_average(length), 1, _above_frozen if adapters else _in_training),
        recomputed={},
        prefill=tuple(prefill_work(architecture, at) for at in prompts),
        decode=tuple(decode_work(architecture, at) for at in caches),
        rotation=float(sum(len(group.layers) * _rotation(group.attention, fields) for group in architecture.groups)),
        complete=not any(weight.part == "other" and _is_matrix(weight) for weight in weights),
    )


def prefill_work(architecture: Architecture, length: int) -> Work:
    """The forward pass over a prompt of `length` tokens, with logits of the last one alone."""
    return _work(architecture, length, _seen_on_average(length), 1 / length)


def decode_work(architecture: Architecture, cached: int) -> Work:
    """One token behind a cache of `cached` tokens, with its logits.

    Of a cache of latent vectors it makes the keys and values of all tokens that it sees again, as Transformers does.
    """
    return _work(architecture, cached, _seen_behind(cached), 1, behind_cache=True)


def forward_work(architecture: Architecture, length: int, every_pair: bool = False) -> Work:
    """The forward pass over a row of `length` tokens, with all logits.

    every_pair: whether hidden pairs of attention count as well, as they do in counters that know no mask.
    """
    seen = _everything(length) if every_pair else _seen_on_average(length)
    return _work(architecture, length, seen, 1)


def _everything(length: int) -> Callable[[Attention], float]:
    return lambda _: length


def _seen_on_average(length: int) -> Callable[[Attention], float]:
    return lambda attention: keys_seen(length, attention.window)


def _seen_behind(cached: int) -> Callable[[Attention], float]:
    return lambda attention: min(cached + 1, attention.window or cached + 1)


def _once(part: str) -> int:
    del part
    return 1


def _in_training(part: str) -> int:
    del part
    return FORWARD_AND_BACKWARD


def _above_frozen(part: str) -> int:
    """Weights below adapters get no gradient; scores have no weights."""
    return FORWARD_AND_BACKWARD if part in ("adapters", "attention_scores") else FORWARD_AND_BACKWARD_FROZEN


def _work(
    architecture: Architecture,
    length: int,
    seen: Callable[[Attention], float],
    logits: float,
    passes: Callable[[str], int] = _once,
    *,
    behind_cache: bool = False,
) -> Work:
    """The FLOPs of a token.

    Args:
        architecture: the model's.
        length: what the result says of it.
        seen: the keys that a token sees in a layer.
        logits: the share of the tokens whose logits are computed.
        passes: how often a part is computed.
        behind_cache: whether the keys that a token sees come from a cache.
    """
    found: dict[str, float] = defaultdict(float)
    layers: dict[int, float] = {}
    for group in architecture.groups:
        parts = {part: passes(part) * flops for part, flops in _layer(group, seen, behind_cache).items()}
        for part, flops in parts.items():
            found[part] += len(group.layers) * flops
        layers |= dict.fromkeys(group.layers, sum(parts.values()))
    head = [weight for weight in architecture.outside if weight.part == "head"]
    head = head or [weight for weight in architecture.outside if weight.part == "embedding"][:1]
    numbers = sum(weight.count for weight in head if len(weight.shape) > 1)
    found["head"] = passes("head") * logits * matmul_flops(numbers)
    # OPT's way between an embedding and layers of other widths.
    between = sum(weight.count for weight in architecture.outside if ".project_" in weight.name)
    if between:
        found["other"] += passes("other") * matmul_flops(between)
    parts = {part: float(found[part]) for part in PARTS if part in found}
    return Work(length, sum(parts.values()), parts, tuple(float(layers[number]) for number in sorted(layers)))


def _layer(group: LayerGroup, seen: Callable[[Attention], float], behind_cache: bool) -> dict[str, float]:
    """Part -> the forward FLOPs of one token in a layer."""
    found: dict[str, float] = defaultdict(float)
    attention = group.attention
    for weight in group.weights:
        part = "attention_projections" if weight.part.startswith("attention_") else weight.part
        if part in PARTS and _is_matrix(weight):
            again = behind_cache and _OF_LATENTS in weight.name
            tokens = seen(attention) if again and attention is not None else 1
            found[part] += matmul_flops(weight.count) * _at_work(weight, group) * tokens
    if attention is not None:
        pair = score_flops(attention.query_heads, attention.head_dim, attention.value_dim)
        found["attention_scores"] += pair * seen(attention)
    return found


def _is_matrix(weight: Weight) -> bool:
    """Whether tokens are multiplied by it. Biases of experts that are one tensor have two axes."""
    return len(weight.shape) > 1 and not weight.name.endswith("bias")


def _at_work(weight: Weight, group: LayerGroup) -> float:
    network = group.feed_forward
    if weight.part != "experts" or network is None or not network.experts:
        return 1
    return min(1, network.experts_per_token / network.experts)


def _rotation(attention: Attention | None, fields: Mapping[str, Any]) -> float:
    """Two products and a sum for each channel of a query and a key that turns; XPos' factors are in the tables."""
    if attention is None or attention.positions not in ("rope", "xpos"):
        return 0
    turning = fields.get("qk_rope_head_dim")
    if isinstance(turning, int):  # DeepSeek turns one key for all heads
        return 3 * turning * (attention.query_heads + 1)
    share = next((fields[name] for name in ("partial_rotary_factor", "rotary_pct") if fields.get(name)), 1)
    return 3 * share * attention.head_dim * (attention.query_heads + attention.key_value_heads)
