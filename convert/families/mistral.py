"""Mistral: Llama with a window."""

from convert.families.family import DENSE, LIKE_LLAMA, NO_BIAS, NO_QK_NORM, Family

FAMILY = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    rules=(*LIKE_LLAMA, NO_QK_NORM, NO_BIAS, *DENSE),
    fields=("sliding_window",),
    absent={"num_key_value_heads": 8, "sliding_window": 4096},
    window="sliding_window",
)
