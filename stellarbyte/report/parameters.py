"""The numbers of a model, by part and by layer."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from stellarbyte.report.names import Named, named
from stellarbyte.report.subject import StoredTensor, Subject

# The parts in the order of tables. attention_qkv: several of queries, keys and values in one matrix. positions: learned
# positions, and XPos' learned decay. other: what no name tells.
PARTS = (
    "embedding",
    "positions",
    "attention_q",
    "attention_k",
    "attention_v",
    "attention_qkv",
    "attention_o",
    "feed_forward",
    "router",
    "experts",
    "shared_experts",
    "norms",
    "layer_scale",
    "adapters",
    "head",
    "other",
)


@dataclass(frozen=True)
class LayerParameters:
    """The numbers of one layer: part -> count, for the parts that it has.

    Attributes:
        number: the layer's, from 0.
        active: the numbers that work on one token: all, without the experts that the token is not sent to.
    """

    number: int
    parts: dict[str, int]
    total: int
    active: int


@dataclass(frozen=True)
class Parameters:
    """The numbers of a model; a matrix that serves as embedding and head counts once, as embedding.

    Attributes:
        total: all of them, adapters included. active: those that work on one token.
        tied: the numbers that a counter without memory would count again, as head.
        trained: the numbers that training changes: all, or only the adapters'.
        parts: part -> count over the whole model, in the order of PARTS, for the parts that it has.
        layers: the layers' own.
    """

    total: int
    active: int
    tied: int
    trained: int
    parts: dict[str, int]
    layers: tuple[LayerParameters, ...]


# config.json's names for how many experts work on a token.
_AT_WORK = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")


def experts_per_token(fields: Mapping[str, Any]) -> int | None:
    """How many routed experts work on a token; None where config.json does not say."""
    return next((fields[name] for name in _AT_WORK if isinstance(fields.get(name), int)), None)


def tied_head(tensors: Mapping[str, StoredTensor], fields: Mapping[str, Any]) -> str | None:
    """The name, of those of a model's tensors, of a head that is the embedding once more; None if there is none."""
    if fields.get("tie_word_embeddings") is not True:
        return None
    shapes = {tensor.shape for name, tensor in tensors.items() if named(name).part == "embedding"}
    return next((name for name, at in tensors.items() if named(name).part == "head" and at.shape in shapes), None)


def own_tensors(subject: Subject) -> dict[str, tuple[Named, tuple[int, ...]]]:
    """Name -> (what the name tells, shape) of each parameter, tied ones once."""
    again = tied_head(subject.tensors, subject.fields)
    return {name: (named(name), tensor.shape) for name, tensor in subject.tensors.items() if name != again}


def count_parameters(subject: Subject) -> Parameters:
    """The numbers of a model, by the names and shapes of its tensors."""
    found = own_tensors(subject)
    at_work, layers = experts_per_token(subject.fields), defaultdict[int, list[tuple[Named, tuple[int, ...]]]](list)
    for known, shape in found.values():
        if known.layer is not None:
            layers[known.layer].append((known, shape))
    counted = tuple(_layer(number, layers[number], at_work) for number in sorted(layers))
    parts = _parts(found.values())
    total = sum(parts.values())
    idle = sum(layer.total - layer.active for layer in counted)
    head, embedding = parts.get("head", 0), parts.get("embedding", 0)
    return Parameters(
        total=total,
        active=total - idle,
        tied=0 if head else embedding,
        trained=parts.get("adapters", 0) if subject.adapters else total,
        parts=parts,
        layers=counted,
    )


def experts_in(tensors: Iterable[tuple[Named, tuple[int, ...]]]) -> int:
    """The number of a layer's routed experts, stored one by one or as one tensor; 0 without."""
    count = 0
    for known, shape in tensors:
        if known.part == "experts":
            count = max(count, shape[0] if known.expert is None else known.expert + 1)
    return count


def _layer(number: int, tensors: list[tuple[Named, tuple[int, ...]]], at_work: int | None) -> LayerParameters:
    parts, experts = _parts(tensors), experts_in(tensors)
    total = sum(parts.values())
    idle = 0 if at_work is None or not experts else parts["experts"] * max(0, experts - at_work) // experts
    return LayerParameters(number, parts, total, total - idle)


def _parts(tensors: Iterable[tuple[Named, tuple[int, ...]]]) -> dict[str, int]:
    counts = defaultdict[str, int](int)
    for known, shape in tensors:
        counts[known.part] += math.prod(shape)
    return {part: counts[part] for part in PARTS if part in counts}
