"""The structure of a decoder as a report draws it: its layers, equal ones folded, and the switches in use."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Weight:
    """A tensor of parameters: its name without the layer's prefix, such as self_attn.q_proj.weight, and its shape.

    Shapes are PyTorch's, (out, in). Of experts that are stored one by one there is one Weight, whose `copies` says how
    many; of those stored as one tensor the shape begins with their number.

    Attributes:
        part: one of parameters.PARTS.
        copies: how many tensors of this shape the layer has.
    """

    name: str
    shape: tuple[int, ...]
    part: str
    copies: int = 1

    @property
    def count(self) -> int:
        """The numbers in all copies."""
        return self.copies * math.prod(self.shape)


@dataclass(frozen=True)
class Attention:
    """How a layer attends.

    Attributes:
        query_heads, key_value_heads: their numbers. head_dim: the width of a query's head, in channels.
        value_dim: the width of a value's head, in channels.
        window: the number of positions that a token sees, itself included; None lets it see all earlier ones.
        positions: xpos, rope, learned, alibi or none.
        qk_norm: whether queries and keys are normalised. bias: whether projections have biases.
        latent: the channels of the one vector from which all heads' keys and values of a token are made, and which is
            cached in their place, as in DeepSeek's models; None where there is none.
    """

    query_heads: int
    key_value_heads: int
    head_dim: int
    value_dim: int
    window: int | None
    positions: str
    qk_norm: bool
    bias: bool
    latent: int | None = None


@dataclass(frozen=True)
class FeedForward:
    """A layer's feed-forward network, or its experts.

    Attributes:
        width: the channels inside; with experts, inside one of them.
        gated: whether it is act(gate(x)) · up(x), and not act(up(x)).
        activation: its name in Hugging Face's words.
        experts: the number of routed experts; 0 for a dense network. experts_per_token: how many of them work on one.
        shared_experts: the number of experts that work on every token. shared_width: the channels inside all of them.
    """

    width: int
    gated: bool
    activation: str
    experts: int = 0
    experts_per_token: int = 0
    shared_experts: int = 0
    shared_width: int = 0


@dataclass(frozen=True)
class LayerGroup:
    """Layers that are alike: their numbers, ascending, and what each of them is.

    Attributes:
        attention, feed_forward: None where the layer has none, or where config.json does not tell.
        weights: the layer's tensors, in the order of computation where that is known.
        parameters: the numbers in one such layer.
    """

    layers: tuple[int, ...]
    attention: Attention | None
    feed_forward: FeedForward | None
    weights: tuple[Weight, ...]
    parameters: int


@dataclass(frozen=True)
class Architecture:
    """The structure of a decoder.

    Attributes:
        model_type: config.json's, such as stellarbyte or llama.
        vocab_size, hidden_size: None where unknown. context: the number of positions it can be used at.
        tied: whether the head uses the matrix of the input embeddings.
        norm: rms_norm or layer_norm. residual: pre_norm, post_norm, deepnorm or sandwich. Both None where unknown.
        parallel: whether attention and the feed-forward network of a layer read the same input.
        switches: name of a config field that is not at its default, or that names a technique -> its value.
        groups: the layers, equal ones folded, by their first number.
        outside: the tensors outside the layers: embeddings, last norm, head.
    """

    model_type: str
    vocab_size: int | None
    hidden_size: int | None
    context: int | None
    tied: bool
    norm: str | None
    residual: str | None
    parallel: bool
    switches: dict[str, str | int | float | bool]
    groups: tuple[LayerGroup, ...]
    outside: tuple[Weight, ...]

    @property
    def num_layers(self) -> int:
        """The number of layers."""
        return sum(len(group.layers) for group in self.groups)
