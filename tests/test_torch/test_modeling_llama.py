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
        **{**shared, **changes, "rope_scaling": None},
        rms_norm_eps=ours.config.rms_norm_eps,
        rope_parameters=ours.config.rope_parameters,
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


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn_all": {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0},
        **{"beta_slow": 0.5, "mscale": 2.0, "mscale_all_dim": 1.0, "truncate": False},
    },
    "yarn_factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5},
    "llama3": {
        **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
        **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    },
}


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("length", [40, 100])  # within the context of 64 and beyond it
@torch.no_grad()
def test_rope_scaling_is_llamas(name: str, length: int) -> None:
    ours, theirs = pair("sdpa", rope_scaling=SCALINGS[name])
    ids = tokens(2, length)
    expected = theirs(ids).logits
    assert relative_error(ours(ids).logits, expected) < 1e-5
    plain = tiny_model(position_embedding="rope", rope_theta=500.0)(ids).logits
    assert (relative_error(plain, expected) > 1e-3) == (name != "dynamic" or length > 64)


@torch.no_grad()
def test_dynamic_scaling_remembers_no_earlier_call() -> None:
    model = tiny_model(position_embedding="rope", rope_scaling=SCALINGS["dynamic"])
    short, long = tokens(1, 70), tokens(1, 100)
    before = model(short).logits
    model(long)
    assert torch.equal(model(short).logits, before)


def test_attention_bias_is_llamas() -> None:
    ours, theirs = pair("sdpa", attention_bias=True)
    for name, parameter in ours.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    theirs.load_state_dict(ours.state_dict())
    ids = tokens(2, 20)
    assert relative_error(ours(ids).logits, theirs(ids).logits) < 1e-5


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
    assert theirs._tp_plan.items() <= ours._tp_plan.items()
