"""With position_embedding rope, StellarByte is Llama."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stellarbyte_torch import ByteForCausalLM

from .tiny import TINY, relative_error, tiny_model, tokens


def pair(attention: str, **changes: Any) -> tuple[ByteForCausalLM, LlamaForCausalLM]:
    ours = tiny_model(attention, position_embedding="rope", rope_theta=500.0, **changes)
    shared = {name: value for name, value in TINY.items() if not name.startswith("xpos")}
    config = LlamaConfig(
        **{**shared, **changes},
        rms_norm_eps=ours.config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    theirs = LlamaForCausalLM._from_config(config, attn_implementation=attention).eval()
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    return ours, theirs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_logits_loss_and_gradients_are_llamas(attention: str, tied: bool, kv_heads: int) -> None:
    ours, theirs = pair(attention, tie_word_embeddings=tied, num_key_value_heads=kv_heads)
    ids = tokens(3, 33)
    labels = ids.clone()
    labels[0, :7] = -100
    our_outputs, their_outputs = ours(ids, labels=labels), theirs(ids, labels=labels)
    assert relative_error(our_outputs.logits, their_outputs.logits) < 1e-5
    assert relative_error(our_outputs.loss, their_outputs.loss) < 1e-5
    our_outputs.loss.backward()
    their_outputs.loss.backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert {name for name, _ in ours.named_parameters()} == set(their_gradients)
    for name, parameter in ours.named_parameters():
        assert relative_error(parameter.grad, their_gradients[name]) < 1e-5, name


def test_head_dim_and_activation_are_free() -> None:
    ours, theirs = pair("sdpa", head_dim=6, hidden_act="gelu")
    ids = tokens(2, 20)
    assert relative_error(ours(ids).logits, theirs(ids).logits) < 1e-5


def test_padding_and_generation_are_llamas() -> None:
    ours, theirs = pair("sdpa")
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    ids[0, :4], mask[0, :4] = 2, 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))


def test_names_and_plans_are_llamas() -> None:
    """Stock tools find the parts by these names."""
    ours, theirs = pair("sdpa")
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert ours.config.base_model_tp_plan == theirs.config.base_model_tp_plan
    assert ours.config.base_model_pp_plan == theirs.config.base_model_pp_plan
    assert ours._tp_plan == theirs._tp_plan
