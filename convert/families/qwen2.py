"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from convert.families.family import DENSE, LIKE_LLAMA, NO_QK_NORM, Family, Rule

FAMILY = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    # The bias of o_proj, which Qwen2 lacks, begins at 0 here. Training moves it, so there is no way back.
    rules=(*LIKE_LLAMA, NO_QK_NORM, Rule("attention_bias", True, "has biases on queries, keys and values"), *DENSE),
    fields=("sliding_window",),
    absent={"num_key_value_heads": 32},
    window="layer_types",
    zeros=("self_attn.o_proj.bias",),
    not_exported=Rule("attention_bias", True, "has no bias on o_proj: LlamaForCausalLM has one"),
)
