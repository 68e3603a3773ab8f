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
