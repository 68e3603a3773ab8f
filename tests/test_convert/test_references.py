"""With the switches of Llama, Mistral, Qwen3, Mixtral or Qwen3Moe, the JAX model is that model of transformers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx

from convert import weights
from stellarbyte.architecture import RopeScaling
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.training.state import abstract_model
from test_convert.models import tiny
from tiers import short_tier

WINDOW = 6
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LLAMA3 = {"original_max_position_embeddings": 32, "low_freq_factor": 1.0, "high_freq_factor": 4.0}

# Name of transformers' class, our switches, and what its config calls them.
REFERENCES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", {}, {}),
    "llama_bias": ("Llama", {"attention_bias": True}, {"attention_bias": True}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "llama_linear": ("Llama", {"rope_scaling": RopeScaling("linear", 3.0)}, {"rope_type": "linear", "factor": 3.0}),
    "llama_dynamic": ("Llama", {"rope_scaling": RopeScaling("dynamic", 3.0)}, {"rope_type": "dynamic", "factor": 3.0}),
    "llama_yarn": ("Llama", {"rope_scaling": RopeScaling("yarn", 4.0)}, {"rope_type": "yarn", "factor": 4.0}),
    "llama_llama3": (
        "Llama",
        {"rope_scaling": RopeScaling("llama3", 8.0, **LLAMA3)},
        {"rope_type": "llama3", "factor": 8.0, **LLAMA3},
    ),
    "mistral": ("Mistral", {"sliding_window": WINDOW}, {"sliding_window": WINDOW}),
    "qwen3": ("Qwen3", {"qk_norm": True}, {}),
    "mixtral": ("Mixtral", MOE | {"intermediate_size": 16}, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", MOE | {"qk_norm": True}, MOE | {"norm_topk_prob": True}),
    "qwen3_moe_plain": ("Qwen3Moe", MOE | {"qk_norm": True, "norm_topk_prob": False}, MOE | {"norm_topk_prob": False}),
}


def pair(name: str) -> tuple[Any, Any]:
    """(a JAX model, a model of transformers) with the same weights."""
    class_name, switches, theirs = REFERENCES[name]
    # Short enough that dynamic scaling has begun within the test's sequences.
    config = tiny(position_embedding="rope", max_position_embeddings=16, **switches)
    shared = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    shared += ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "initializer_range")
    rope = {key: theirs[key] for key in ("rope_type", "factor", *LLAMA3) if key in theirs} or {"rope_type": "default"}
    their_config = getattr(transformers, f"{class_name}Config")(
        **{key: getattr(config, key) for key in (*shared, "tie_word_embeddings")},
        **{key: value for key, value in theirs.items() if key not in (*rope, *shared, "tie_word_embeddings")},
        rope_parameters={**rope, "rope_theta": config.rope_theta},
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{class_name}ForCausalLM")(their_config).eval()
    for key, parameter in model.named_parameters():
        if "norm" in key or "bias" in key:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    params = jax.tree.map(jnp.asarray, weights.from_hf(state, config))
    return nnx.merge(abstract_model(config)[0], params), model


def tokens(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(3, 37, (2, length)).astype(np.int32)


def relative(ours: Any, theirs: torch.Tensor) -> float:
    return float(np.abs(np.asarray(ours) - theirs.numpy()).max() / theirs.abs().max())


@pytest.mark.parametrize("name", REFERENCES)
@torch.no_grad()
def test_logits_are_those_of_transformers(name: str) -> None:
    ours, theirs = pair(name)
    ids = tokens(22)
    expected = theirs(torch.tensor(ids).long(), use_cache=False).logits
    assert relative(jax.jit(lambda ids: ours(ids).logits)(ids), expected) < 1e-5


@pytest.mark.parametrize("length", short_tier([WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW], 2, 3))
@torch.no_grad()
def test_the_window_is_mistrals_to_the_token(length: int) -> None:
    ours, theirs = pair("mistral")
    ids = tokens(length)
    expected = theirs(torch.tensor(ids).long(), use_cache=False).logits
    assert relative(jax.jit(lambda ids: ours(ids).logits)(ids), expected) < 1e-5

    step = jax.jit(lambda cache, ids: (lambda out: (out.logits, out.cache))(ours(ids, cache=cache)))
    cache, past = KVCache.create(ours.config, 2, 4 * WINDOW), None
    for t in range(length):
        logits, cache = step(cache, jnp.asarray(ids[:, t : t + 1]))
        output = theirs(torch.tensor(ids[:, t : t + 1]).long(), past_key_values=past, use_cache=True)
        past = output.past_key_values
        assert relative(logits, output.logits) < 1e-5
