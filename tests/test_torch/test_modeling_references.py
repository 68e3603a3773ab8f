"""With the switches of Mistral, Qwen3, Mixtral or Qwen3Moe, StellarByte is that model of transformers."""

from typing import Any

import pytest
import torch
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from stellarbyte_torch import ByteForCausalLM

from .tiny import TINY, relative_error, tiny_model, tokens

WINDOW = 6


def reference(model_class: Any, config_class: Any, ours: ByteForCausalLM, attention: str, **changes: Any) -> Any:
    """The same weights in a model of transformers; strict: the names are the same."""
    shared = {name: value for name, value in TINY.items() if not name.startswith("xpos")}
    settings = {**shared, "head_dim": 8, "rms_norm_eps": 1e-5, "pad_token_id": None, **changes}
    config = config_class(**settings, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    theirs = model_class._from_config(config, attn_implementation=attention).eval()
    theirs.load_state_dict(ours.state_dict())
    return theirs


def jolt_norms(model: ByteForCausalLM) -> None:
    """Norms start at 1, where a missing or swapped one would not show."""
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)


def assert_equal(ours: ByteForCausalLM, theirs: Any, ids: torch.Tensor) -> None:
    our_outputs, their_outputs = ours(ids, labels=ids), theirs(ids, labels=ids)
    assert relative_error(our_outputs.logits, their_outputs.logits) < 1e-5
    our_outputs.loss.backward()
    their_outputs.loss.backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        if name.endswith("mlp.gate.weight") and ours.config.num_experts_per_tok == 1:
            # The only expert's weight is 1 whatever the router says: theirs is made of rounding errors.
            assert not parameter.grad.any() and gradients[name].abs().max() < 1e-7, name
        else:
            assert relative_error(parameter.grad, gradients[name]) < 1e-5, name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
def test_mistral(length: int, attention: str) -> None:
    ours = tiny_model(attention, position_embedding="rope", sliding_window=WINDOW)
    theirs = reference(MistralForCausalLM, MistralConfig, ours, attention, sliding_window=WINDOW)
    assert_equal(ours, theirs, tokens(2, length))


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW])
@torch.no_grad()
def test_mistral_with_a_cache(length: int) -> None:
    ours = tiny_model(position_embedding="rope", sliding_window=WINDOW)
    theirs = reference(MistralForCausalLM, MistralConfig, ours, "sdpa", sliding_window=WINDOW)
    ids = tokens(2, length)
    our_outputs, their_outputs = ours(ids[:, :2]), theirs(ids[:, :2])
    for t in range(2, length):
        our_outputs = ours(ids[:, t : t + 1], past_key_values=our_outputs.past_key_values)
        their_outputs = theirs(ids[:, t : t + 1], past_key_values=their_outputs.past_key_values)
        assert relative_error(our_outputs.logits, their_outputs.logits) < 1e-5
    for ours_layer, theirs_layer in zip(
        our_outputs.past_key_values.layers, their_outputs.past_key_values.layers, strict=True
    ):
        assert ours_layer.keys.shape == theirs_layer.keys.shape
        assert ours_layer.keys.shape[2] <= WINDOW - 1
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


def test_qwen3() -> None:
    ours = tiny_model(position_embedding="rope", qk_norm=True)
    jolt_norms(ours)
    assert_equal(ours, reference(Qwen3ForCausalLM, Qwen3Config, ours, "sdpa"), tokens(2, 20))


@pytest.mark.parametrize("experts", [1, 2, 4])
def test_mixtral(experts: int) -> None:
    ours = tiny_model(position_embedding="rope", num_experts=4, num_experts_per_tok=experts)
    changes = {"num_local_experts": 4, "num_experts_per_tok": experts}
    assert_equal(ours, reference(MixtralForCausalLM, MixtralConfig, ours, "sdpa", **changes), tokens(2, 20))


@pytest.mark.parametrize("normalised", [False, True])
def test_qwen3_moe(normalised: bool) -> None:
    changes = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "norm_topk_prob": normalised}
    ours = tiny_model(position_embedding="rope", qk_norm=True, **changes)
    jolt_norms(ours)
    assert_equal(ours, reference(Qwen3MoeForCausalLM, Qwen3MoeConfig, ours, "sdpa", **changes), tokens(2, 20))
