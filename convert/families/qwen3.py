"""Qwen3: Llama with normalised queries and keys, and heads of their own width."""

from convert.families.family import DENSE, LIKE_LLAMA, QK_NORM, Family

FAMILY = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    rules=(*LIKE_LLAMA, QK_NORM, *DENSE),
    fields=("attention_bias", "sliding_window"),
    absent={"num_key_value_heads": 32, "head_dim": 128},
    window="layer_types",
)
