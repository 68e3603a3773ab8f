"""Qwen3-MoE: Qwen3 with experts in every layer."""

from convert.families.family import LIKE_LLAMA, QK_NORM, SPARSE, Experts, Family

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    rules=(*LIKE_LLAMA, QK_NORM, *SPARSE),
    fields=("attention_bias", "sliding_window", "num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef"),
    absent={
        **{"num_key_value_heads": 4, "norm_topk_prob": False, "router_aux_loss_coef": 0.001},
        "router_z_loss_coef": 0.0,
    },
    neutral={"decoder_sparse_step": 1, "mlp_only_layers": []},
    window="use_sliding_window",
    experts=Experts(
        router="mlp.gate.weight",
        gate="mlp.experts.{expert}.gate_proj.weight",
        up="mlp.experts.{expert}.up_proj.weight",
        down="mlp.experts.{expert}.down_proj.weight",
        count="num_experts",
        width="moe_intermediate_size",
    ),
)
