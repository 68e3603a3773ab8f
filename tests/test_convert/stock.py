"""Tiny models of Transformers' own classes with random weights, in folders as a user has them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from convert.families.registry import FAMILIES
from stellarbyte_jax.data.tokenizer import Tokenizer

VOCAB_SIZE = 300

# Sizes that differ from each other, so that a swapped axis shows.
_SIZES = {
    **{"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48, "rms_norm_eps": 1e-5},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    # Transformers computes dynamic and yarn from a head_dim that it does not derive for Mixtral.
    "mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": None, "head_dim": 8},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 12},
}
assert _OWN.keys() == FAMILIES.keys()

# Each lets the context be longer than it was in earlier training, and the tests go there; dynamic goes beyond 48.
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 3.0, "original_max_position_embeddings": 16},
    "llama3": {
        **{"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "original_max_position_embeddings": 16},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
}
LENGTHS = {"dynamic": 80}
LENGTH = 44


def stock_config(family: str, rope: str = "default", **fields: Any) -> Any:
    return AutoConfig.for_model(family, **{**_SIZES, **_OWN[family], "rope_parameters": dict(ROPES[rope]), **fields})


def stock_model(family: str, rope: str = "default", **fields: Any) -> PreTrainedModel:
    """A model whose every tensor has its say: no norm is 1, no bias 0."""
    model = AutoModelForCausalLM.from_config(stock_config(family, rope, **fields)).float().eval()
    assert type(model).__name__ == FAMILIES[family].architecture
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.4, 1.4, generator=generator)
            elif "embed" in name or name.endswith("bias"):
                parameter.normal_(0.0, 0.5, generator=generator)
            else:
                parameter.normal_(0.0, 1.2 * parameter.shape[-1] ** -0.5, generator=generator)
    return model


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    Tokenizer.save_files(tokenizer.files, folder)
    return folder


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(7).integers(3, VOCAB_SIZE, (2, length)).astype(np.int32)


@torch.no_grad()
def logits(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(ids).long(), use_cache=False).logits.numpy()
