"""The one table of which layers a scale reaches: what may be divided where, and who must multiply to make up for it.

A source's output channels may be divided by any positive scale if every layer that reads them multiplies its input
columns by it: the model stays the same. Who reads them depends on the switches of the architecture, and not on names. A
deepnorm model has the norms of a Llama, but theirs are the residual stream itself; with parallel_residual the
feed-forward reads the norm before the attention. Neither qk_norm, LayerScale nor a bias changes who reads what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stellarbyte_torch.quantization.experts import ROUTER, linears_of

# The families whose layers the table describes.
FAMILIES = ("stellarbyte", "llama", "mistral", "qwen2", "qwen3", "mixtral", "qwen3_moe")

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
# A sparse layer has the router, its experts and perhaps shared ones. The router comes first: it reads every row.
_FEED_FORWARD = (
    *("mlp.gate_proj", "mlp.up_proj", ROUTER, "mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
    *("mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"),
)


@dataclass(frozen=True)
class Row:
    """A row of the table: in models whose switches are as in `when`, `consumers` read what `source` puts out.

    A star in a name stands for the number of an expert, the same one in the source and its consumers, or for every
    expert if the source has none. A consumer that a layer does not have is left out.
    """

    source: str
    consumers: tuple[str, ...]
    when: Mapping[str, Any] = field(default_factory=dict)


TABLE = (
    # A deepnorm model has no input_layernorm, and one with parallel_residual no post_attention_layernorm.
    Row("input_layernorm", _ATTENTION, {"parallel_residual": False}),
    Row("input_layernorm", (*_ATTENTION, *_FEED_FORWARD), {"parallel_residual": True}),
    Row("post_attention_layernorm", _FEED_FORWARD, {"residual": "pre_norm"}),
    # Attention mixes positions, never channels: a value's channel arrives in each query head that reads its head.
    Row("self_attn.v_proj", ("self_attn.o_proj",)),
    # act(gate) · up is linear in up, channel by channel.
    Row("mlp.up_proj", ("mlp.down_proj",)),
    Row("mlp.shared_experts.up_proj", ("mlp.shared_experts.down_proj",)),
    Row("mlp.experts.*.up_proj", ("mlp.experts.*.down_proj",)),
)

# What a switch is in models that do not have it.
_ABSENT = {"residual": "pre_norm", "parallel_residual": False}


@dataclass(frozen=True)
class Reach:
    """One source in one decoder layer, and the linear layers that read it; names are those of `linears_of`.

    spread: the source's channel that each input column of the consumers reads, int64 [I]; None if they are the same.
    """

    source: str
    consumers: tuple[str, ...]
    spread: Tensor | None = None

    def on_inputs(self, scale: Tensor) -> Tensor:
        """A scale of the source's channels as one of the consumers' input columns."""
        return scale if self.spread is None else scale[self.spread.to(scale.device)]

    def on_source(self, values_I: Tensor, reduction: Literal["mean", "amax"]) -> Tensor:
        """Values of the consumers' input columns, reduced over those that read the same channel of the source."""
        if self.spread is None:
            return values_I
        spread = self.spread.to(values_I.device)
        found = values_I.new_zeros(int(spread.max()) + 1)
        return found.scatter_reduce_(0, spread, values_I, reduction, include_self=False)


def reaches(layer: nn.Module, config: Any, table: tuple[Row, ...] = TABLE) -> list[Reach]:
    """The rows of the table that hold for one decoder layer of a model with this config."""
    linears = linears_of(layer)
    found: list[Reach] = []
    for row in table:
        if any(getattr(config, name, _ABSENT[name]) != value for name, value in row.when.items()):
            continue
        sources = [name for name in linears if fnmatchcase(name, row.source)] if "*" in row.source else [row.source]
        for source in sources:
            if source not in linears and not isinstance(getattr(layer, source, None), nn.Module):
                continue
            patterns = row.consumers
            if "*" in row.source:
                number = source.split(".")[2]
                patterns = tuple(pattern.replace("*", number) for pattern in patterns)
            consumers = tuple(name for pattern in patterns for name in linears if fnmatchcase(name, pattern))
            if consumers:
                spread = _values_read(layer.self_attn) if source == "self_attn.v_proj" else None
                found.append(Reach(source, consumers, spread))
    return found


def _values_read(attention: Any) -> Tensor:
    """The channel of v_proj that each input column of o_proj reads, int64 [N · H]."""
    H = attention.head_dim
    heads = attention.o_proj.in_features // H
    # Ours knows which head each query head reads, since some may be pruned; stock models repeat all equally often.
    slots = getattr(attention, "kv_slots", None) or [n // attention.num_key_value_groups for n in range(heads)]
    return (torch.tensor(slots)[:, None] * H + torch.arange(H)).flatten()
