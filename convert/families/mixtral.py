"""Mixtral: Mistral with experts."""

from convert.families.family import LIKE_LLAMA, NO_BIAS, NO_QK_NORM, NORMALISED, SPARSE, Experts, Family

FAMILY = Family(
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    rules=(*LIKE_LLAMA, NO_QK_NORM, NO_BIAS, *SPARSE, NORMALISED),
    fields=("sliding_window", "num_experts_per_tok", "router_aux_loss_coef"),
    absent={"num_key_value_heads": 8, "rope_theta": 1e6, "router_aux_loss_coef": 0.001, "router_z_loss_coef": 0.0},
    neutral={"router_jitter_noise": 0.0},
    window="sliding_window",
    experts=Experts(
        router="block_sparse_moe.gate.weight",
        gate="block_sparse_moe.experts.{expert}.w1.weight",
        up="block_sparse_moe.experts.{expert}.w3.weight",
        down="block_sparse_moe.experts.{expert}.w2.weight",
        count="num_local_experts",
        width="intermediate_size",
    ),
)
