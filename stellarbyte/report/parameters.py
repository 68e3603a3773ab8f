"""The numbers of a model, by part and by layer."""

from dataclasses import dataclass

# The parts in the order of tables. attention_qkv: queries, keys and values in one matrix, of which the shares are not
# known. positions: learned positions, and XPos' learned decay. other: what no name tells.
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
