"""Small models that the tests of this folder share."""

from typing import Any

import torch

from stellarbyte_torch import ByteConfig, ByteForCausalLM

TINY: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Far above the default, so that attention is far from uniform and an error in it shows.
    "initializer_range": 0.3,
    # Small, so that the decay is strong within these short texts.
    "xpos_scale_base": 16.0,
}
POSITIONS: dict[str, dict[str, Any]] = {
    "rope": {"position_embedding": "rope"},
    "xpos": {"position_embedding": "xpos"},
    "xpos_learnable": {"position_embedding": "xpos", "xpos_learnable": True},
}
# One switch of the architecture each, and some that meet in one place.
SWITCHES: dict[str, dict[str, Any]] = {
    "none": {"position_embedding": "none"},
    "linear": {"position_embedding": "rope", "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "yarn": {"position_embedding": "rope", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "window": {"sliding_window": 5},
    "window_1": {"sliding_window": 1},
    "qk_norm": {"qk_norm": True},
    "attention_bias": {"attention_bias": True},
    "parallel": {"parallel_residual": True},
    "deepnorm": {"residual": "deepnorm"},
    "deepnorm_parallel": {"residual": "deepnorm", "parallel_residual": True},
    "layer_scale": {"layer_scale_init": 0.5},
    "dropouts": {"hidden_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1, "drop_path_rate": 0.1},
    "experts": {"num_experts": 4, "moe_intermediate_size": 24},
    "shared_experts": {"num_experts": 4, "num_experts_per_tok": 3, "num_shared_experts": 2, "norm_topk_prob": False},
    "pruned": {"pruned_heads": ((1,), (0, 1))},
    "uneven": {"intermediate_size": (48, 20)},
    "everything": {
        **{"sliding_window": 5, "qk_norm": True, "attention_bias": True, "residual": "deepnorm"},
        **{"num_experts": 4, "num_shared_experts": 1, "moe_capacity_factor": 1.0, "pruned_heads": ((3,), ())},
    },
}


def tiny_model(attention: str = "sdpa", **changes: Any) -> ByteForCausalLM:
    torch.manual_seed(0)
    model = ByteForCausalLM._from_config(ByteConfig(**{**TINY, **changes}), attn_implementation=attention)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1, vocab_size: int = 97) -> torch.Tensor:
    """Ordinary tokens only: bos 0, eos 1 and pad 2 are left out."""
    return torch.randint(3, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest expected value."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).abs().max() / expected.abs().max()).item()
