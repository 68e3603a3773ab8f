"""Configs that hypothesis draws: sizes and switches as they come."""

from typing import Any

from hypothesis import strategies as st

from stellarbyte_jax.config import ByteConfig
from test_convert.switches import SWITCHES

# Those whose values go with any sizes.
_PLAIN = ("position", "residual", "parallel", "qk_norm", "bias", "tied", "act", "drop")


@st.composite
def configs(draw: st.DrawFn, min_vocab: int = 3, min_window: int = 1) -> ByteConfig:
    """Any small model."""
    experts = draw(st.sampled_from((0, 0, 1, 2, 3, 5)))

    def size() -> int:
        # With experts, a multiple of 8: grouped matmuls want it.
        return 8 * draw(st.integers(1, 3)) if experts else draw(st.integers(1, 24))

    fields: dict[str, Any] = {}
    for switch in _PLAIN:
        fields |= draw(st.sampled_from(list(SWITCHES[switch].values())))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads, layers = kv_heads * group, draw(st.integers(1, 3))
    # Rotary positions turn pairs; dynamic scaling has the exponent 1 / (head_dim - 2).
    head_dim = draw(st.integers(1, 7)) if fields["position_embedding"] == "none" else 2 * draw(st.integers(2, 4))
    gone = st.lists(st.integers(0, heads - 1), max_size=heads - 1, unique=True).map(lambda heads: tuple(sorted(heads)))
    if experts:
        fields |= {
            "num_experts": experts,
            "num_experts_per_tok": draw(st.integers(1, experts)),
            "num_shared_experts": draw(st.integers(0, 2)),
            "moe_intermediate_size": size(),
            "moe_capacity_factor": draw(st.none() | st.floats(0.25, 2.0)),
            "norm_topk_prob": draw(st.booleans()),
        }
    if "residual" not in fields:
        fields["layer_scale_init"] = draw(st.none() | st.just(0.1))
    return ByteConfig(
        **{"max_position_embeddings": 64} | fields,
        vocab_size=draw(st.integers(min_vocab, min_vocab + 9)),
        hidden_size=size(),
        intermediate_size=size() if experts or draw(st.booleans()) else tuple(size() for _ in range(layers)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        sliding_window=draw(st.none() | st.integers(min_window, 6)),
        pruned_heads=draw(st.none() | st.tuples(*[gone] * layers)),
    )
