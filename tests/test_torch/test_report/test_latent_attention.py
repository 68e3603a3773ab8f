"""Of a cache of latent vectors, the report counts what torch multiplies."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from stellarbyte.report.find import find_subject
from stellarbyte.report.flops import decode_work, forward_work
from stellarbyte.report.structure import structure_of

PROMPT = 24


def counted(function):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("q_lora_rank", [None, 24])
def test_deepseeks_prompts_and_decoding(q_lora_rank, tmp_path):
    """Eager attention, which multiplies hidden pairs as well; behind a cache it makes all keys and values again."""
    config = DeepseekV3Config(
        **{"vocab_size": 128, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 2, "n_routed_experts": 4},
        **{"n_group": 1, "topk_group": 1, "moe_intermediate_size": 16, "q_lora_rank": q_lora_rank, "kv_lora_rank": 16},
        **{"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 24, "max_position_embeddings": 64},
        attn_implementation="eager",
    )
    model = DeepseekV3ForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    structure = structure_of(find_subject(tmp_path))
    ids = torch.ones((1, PROMPT), dtype=torch.long)
    assert counted(lambda: model(ids)) == PROMPT * forward_work(structure, PROMPT, every_pair=True).total
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    if cache.layers[0].keys.shape[-1] != config.kv_lora_rank:
        pytest.skip("this Transformers caches whole keys and values")
    assert counted(lambda: model(ids[:, :1], past_key_values=cache)) == decode_work(structure, PROMPT).total
