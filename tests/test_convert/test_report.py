"""What a report counts of a config, a run and a folder is what PyTorch and JAX have, over all switches and families."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from convert.described import described
from stellarbyte.report.find import find_subject
from stellarbyte.report.making import make_reports
from stellarbyte.report.memory import cache_bytes
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.planning.parameters import ParameterCounter
from stellarbyte_torch import ByteConfig as TorchConfig
from stellarbyte_torch import ByteForCausalLM
from test_convert.stock import _OWN as STOCK
from test_convert.stock import stock_config
from test_convert.switches import grid
from tiers import short_tier

SIZES = {
    **{"vocab_size": 96, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
}
GPT = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 96}
SPARSE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
OTHERS = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 8},
    "bloom": {"hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 96},
    "gemma": SIZES | {"head_dim": 32},
    "gemma2": SIZES | {"head_dim": 32, "sliding_window": 16},
    "phi": SIZES | {"num_key_value_heads": 4},
    "phi3": SIZES,
    "gpt_neox": SIZES,
    "falcon": {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 96},
    "olmo2": SIZES,
    "cohere": SIZES,
    "qwen2_moe": SIZES | SPARSE | {"num_experts": 4, "shared_expert_intermediate_size": 48},
    "gpt_oss": SIZES | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **SIZES,
        **SPARSE,
        **{"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
        **{"qk_nope_head_dim": 16, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    },
}


def numbers(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("every", short_tier([6, 1], 0))
def test_a_config_over_the_grid(every, tmp_path):
    """Nobody's tensors are made: PyTorch's are on the meta device, JAX's are abstract."""
    for row, config in list(grid().items())[::every]:
        path = tmp_path / "model.yaml"
        save_config(config, path)
        found = count_parameters(find_subject(path))
        fields = dataclasses.asdict(config)
        if config.rope_scaling is not None:
            fields["rope_scaling"] = {k: v for k, v in fields["rope_scaling"].items() if v is not None}
        with torch.device("meta"):
            assert found.total == numbers(ByteForCausalLM(TorchConfig(**fields))), row
        counter = ParameterCounter(config)
        assert (found.total, found.active) == (counter.total, counter.active), row


@pytest.mark.parametrize("family", STOCK)
@pytest.mark.parametrize("tied", [False, True])
def test_a_family_by_its_config_and_by_its_folder(family, tied, tmp_path):
    config = stock_config(family, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    by_headers, by_config = (count_parameters(find_subject(tmp_path / name)) for name in ("", "config.json"))
    assert by_headers == by_config
    assert by_headers.total == numbers(model)


@pytest.mark.parametrize("family", OTHERS)
def test_a_family_that_is_not_ours(family, tmp_path):
    """The structure is read as well: each layer's heads, and the channels of its network."""
    config = AutoConfig.for_model(family, **OTHERS[family])
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    subject = find_subject(tmp_path)
    assert described(json.loads((tmp_path / "config.json").read_text()), "") is None
    assert count_parameters(subject).total == numbers(model)
    structure = structure_of(subject)
    assert structure.num_layers == 3
    for group in structure.groups:
        assert group.attention.query_heads == 4
        assert group.feed_forward.width in (32, 112, 256)


@pytest.mark.parametrize("family", ["gpt2", "falcon", "phi3", "gpt_oss", "deepseek_v3"])
def test_keys_and_values_are_what_transformers_keeps(family, tmp_path):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **OTHERS[family])).eval()
    with torch.no_grad():
        cache = model(torch.ones((1, 40), dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    model.save_pretrained(tmp_path)
    assert cache_bytes(structure_of(find_subject(tmp_path)), "float32", 40) == held


def test_a_run_by_its_config_and_its_export(run_dir, exported):
    of_run, of_export = find_subject(run_dir), find_subject(exported)
    assert count_parameters(of_run) == count_parameters(of_export)
    assert structure_of(of_run).groups == structure_of(of_export).groups
    assert of_run.config == of_export.config


def test_what_a_model_type_is_not_told_to_have(tmp_path):
    """Fields that a family has no place for are refused in a bare config, and counted by the headers of a folder."""
    config = stock_config("llama", mlp_bias=True)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="mlp_bias is not a field of StellarByte"):
        find_subject(tmp_path / "config.json")
    subject = find_subject(tmp_path)
    assert count_parameters(subject).total == numbers(model)
    (remark,) = (each for each in make_reports([tmp_path])[0].remarks if "not foreseen" in each)
    assert remark == subject.misfit and "mlp_bias" in remark
