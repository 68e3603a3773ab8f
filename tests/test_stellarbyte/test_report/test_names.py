"""A tensor's name tells its layer, its part and whether it is a parameter, in many families' words."""

import pytest

from stellarbyte.report.names import is_buffer, named, stem_of_scale


@pytest.mark.parametrize(
    ("name", "layer", "part"),
    [
        ("model.layers.7.self_attn.q_proj.weight", 7, "attention_q"),
        ("model.layers.7.self_attn.q_norm.weight", 7, "norms"),
        ("model.layers.0.self_attn_layer_scale.weight", 0, "layer_scale"),
        ("model.layers.0.mlp.gate.weight", 0, "router"),
        ("model.layers.0.mlp.gate_proj.weight", 0, "feed_forward"),
        ("model.layers.0.mlp.experts.gate_up_proj", 0, "experts"),
        ("model.layers.0.mlp.shared_experts.up_proj.weight", 0, "shared_experts"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", 0, "adapters"),
        ("model.layers.3.block_sparse_moe.experts.5.w1.weight", 3, "experts"),
        ("model.layers.3.block_sparse_moe.gate.weight", 3, "router"),
        ("model.layers.3.block_sparse_moe.router.layer.weight", 3, "router"),
        ("model.layers.3.block_sparse_moe.input_linear.weight", 3, "experts"),
        ("model.layers.3.shared_mlp.input_linear.weight", 3, "shared_experts"),
        ("model.layers.3.mlp.shared_expert_gate.weight", 3, "router"),
        ("model.layers.3.self_attn.kv_b_proj.weight", 3, "attention_qkv"),
        ("model.layers.3.self_attn.kv_a_layernorm.weight", 3, "norms"),
        ("model.layers.3.self_attn.sinks", 3, "other"),
        ("transformer.h.11.attn.c_attn.weight", 11, "attention_qkv"),
        ("h.11.attn.c_proj.bias", 11, "attention_o"),
        ("h.11.mlp.c_fc.weight", 11, "feed_forward"),
        ("h.11.ln_1.weight", 11, "norms"),
        ("gpt_neox.layers.0.attention.query_key_value.weight", 0, "attention_qkv"),
        ("gpt_neox.layers.0.mlp.dense_h_to_4h.bias", 0, "feed_forward"),
        ("model.decoder.layers.0.fc1.weight", 0, "feed_forward"),
        ("transformer.blocks.2.attn.Wqkv.weight", 2, "attention_qkv"),
        ("backbone.layers.2.mixer.in_proj.weight", 2, "other"),
        ("model.embed_tokens.weight", None, "embedding"),
        ("wpe.weight", None, "positions"),
        ("backbone.embeddings.weight", None, "embedding"),
        ("bert.embeddings.LayerNorm.weight", None, "other"),
        ("model.rotary_emb.zeta", None, "positions"),
        ("model.norm.weight", None, "norms"),
        ("transformer.ln_f.bias", None, "norms"),
        ("lm_head.weight", None, "head"),
        ("embed_out.weight", None, "head"),
        ("vision_tower.encoder.layers.1.self_attn.q_proj.weight", None, "other"),
    ],
)
def test_a_name(name, layer, part):
    found = named(name)
    assert (found.layer, found.part) == (layer, part)


def test_an_experts_number_is_no_part_of_its_name():
    one, other = (named(f"model.layers.1.mlp.experts.{expert}.up_proj.weight") for expert in (0, 12))
    assert one.inner == other.inner == "mlp.experts.{expert}.up_proj.weight"
    assert (one.expert, other.expert) == (0, 12)


@pytest.mark.parametrize(
    ("name", "dimensions", "buffer"),
    [
        ("h.0.attn.bias", 4, True),
        ("h.0.attn.bias", 1, False),
        ("h.0.attn.masked_bias", 0, True),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 1, True),
        ("model.layers.0.mlp.gate.e_score_correction_bias", 1, True),
        ("model.layers.0.self_attn.q_proj.bias", 1, False),
    ],
)
def test_buffers(name, dimensions, buffer):
    assert is_buffer(name, dimensions) is buffer


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.q_proj.weight_scale", "a.q_proj"),
        ("a.q_proj.weight_scale_inv", "a.q_proj"),
        ("a.q_proj.qzeros", "a.q_proj"),
        ("a.q_proj.weight.quant_state.bitsandbytes__nf4", "a.q_proj.weight"),
        ("a.experts.down_proj_scales", "a.experts.down_proj"),
        ("a.q_proj.weight", None),
        ("a.self_attn_layer_scale.weight", None),
    ],
)
def test_scales(name, stem):
    assert stem_of_scale(name) == stem
