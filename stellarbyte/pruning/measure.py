"""What a model has, counted by the pieces that pruning takes: parameters, or FLOPs of a token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stellarbyte.pruning.cuts import Cuts, kept_groups
from stellarbyte.token_flops import keys_seen, matmul_flops, score_flops


@dataclass(frozen=True)
class Measure:
    """The sizes of a model's pieces, of which the whole is the sum.

    Attributes:
        outside: what is outside the layers.
        layer: what a layer has whatever it keeps.
        query_head, key_value_head, channel, expert: one of them.
    """

    outside: float
    layer: float
    query_head: float
    key_value_head: float
    channel: float
    expert: float

    def attention(self, heads: Sequence[int], fields: Mapping[str, Any]) -> float:
        """The size of these query heads and the key/value heads that they read."""
        return len(heads) * self.query_head + len(kept_groups(heads, fields)) * self.key_value_head

    def left(self, fields: Mapping[str, Any], cuts: Cuts | None = None) -> float:
        """The size of the model with these fields, by default before any cut."""
        cuts = cuts or Cuts()
        total = self.outside
        for layer in cuts.kept_layers(fields):
            total += self.layer + self.attention(cuts.kept_heads(fields, layer), fields)
            if fields["num_experts"]:
                total += len(cuts.kept_experts(fields, layer)) * self.expert
            else:
                total += len(cuts.kept_channels(fields, layer)) * self.channel
        return total


def parameters(fields: Mapping[str, Any]) -> Measure:
    """The numbers of a model with these config fields."""
    D, H, V = fields["hidden_size"], fields["head_dim"], fields["vocab_size"]
    bias, sequential = int(fields["attention_bias"]), not fields["parallel_residual"]
    X, S = fields["moe_intermediate_size"] or 0, fields["num_shared_experts"]
    norms = D * (1 + sequential) + 2 * H * fields["qk_norm"]
    scales = 2 * D * (fields["layer_scale_init"] is not None)
    return Measure(
        outside=V * D * (1 if fields["tie_word_embeddings"] else 2) + D + H // 2 * fields["xpos_learnable"],
        layer=norms + scales + D * bias + 3 * D * X * S,
        query_head=H * (2 * D + bias),
        key_value_head=2 * H * (D + bias),
        channel=3 * D,
        expert=3 * D * X + D,
    )


def flops(fields: Mapping[str, Any], context: int) -> Measure:
    """The forward FLOPs of a token of such a model, on average over a text of `context` tokens; only matmuls count."""
    D, H = fields["hidden_size"], fields["head_dim"]
    X = fields["moe_intermediate_size"] or 0
    seen = keys_seen(context, fields["sliding_window"])
    at_work = fields["num_experts_per_tok"] + fields["num_shared_experts"] if fields["num_experts"] else 0
    return Measure(
        outside=matmul_flops(D * fields["vocab_size"]),
        layer=matmul_flops(3 * D * X * at_work),
        query_head=matmul_flops(2 * D * H) + score_flops(1, H, H) * seen,
        key_value_head=matmul_flops(2 * D * H),
        channel=matmul_flops(3 * D),
        expert=matmul_flops(D),
    )
