"""Llama 1, 2 and 3, and what has their shape."""

from convert.families.family import DENSE, LIKE_LLAMA, NO_QK_NORM, NO_WINDOW, Family

FAMILY = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    rules=(*LIKE_LLAMA, NO_QK_NORM, NO_WINDOW, *DENSE),
    fields=("attention_bias",),
    absent={"num_key_value_heads": None},
    heads_divide_width=True,
)
