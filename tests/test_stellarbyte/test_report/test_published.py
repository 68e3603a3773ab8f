"""Parameters of released models by their config.json alone, as their publishers tell them on the Hugging Face Hub."""

import json

import pytest

from stellarbyte.report.find import find_subject
from stellarbyte.report.parameters import count_parameters

COMMON = {
    **{"hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "attention_dropout": 0.0},
    **{"bos_token_id": 1, "eos_token_id": [2, 5], "torch_dtype": "bfloat16", "use_cache": True},
    **{"tie_word_embeddings": False, "transformers_version": "4.51.0"},
}
SEVEN = {
    **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "max_position_embeddings": 32768, "vocab_size": 32000},
}
LLAMA3 = {
    **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"},
    "original_max_position_embeddings": 8192,
}
QWEN3 = {"model_type": "qwen3_moe", "head_dim": 128, "vocab_size": 151936, "attention_bias": False}
MODELS = {
    "Llama-3.1-8B": (
        SEVEN
        | {"model_type": "llama", "vocab_size": 128256, "rope_scaling": LLAMA3, "mlp_bias": False, "pretraining_tp": 1},
        8_030_261_248,
    ),
    "Mistral-7B-v0.1": (SEVEN | {"model_type": "mistral", "sliding_window": 4096}, 7_241_732_096),
    "Mixtral-8x7B-v0.1": (
        SEVEN | {"model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8, "sliding_window": None},
        46_702_792_704,
    ),
    "Qwen2.5-7B": (
        {
            **{"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
            **{"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "max_window_layers": 28},
            **{"max_position_embeddings": 131072, "sliding_window": 131072, "use_sliding_window": False},
            "use_mrope": False,
        },
        7_615_616_512,
    ),
    "Qwen3-0.6B": (
        QWEN3
        | {
            **{"model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "tie_word_embeddings": True},
            **{"max_position_embeddings": 40960, "sliding_window": None, "use_sliding_window": False},
        },
        596_049_920,
    ),
    "Qwen3-30B-A3B": (
        QWEN3
        | {
            **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32},
            **{"num_key_value_heads": 4, "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8},
            **{"decoder_sparse_step": 1, "mlp_only_layers": [], "max_position_embeddings": 40960},
            **{"sliding_window": None, "norm_topk_prob": True},
        },
        30_532_122_624,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_released_model(name, tmp_path):
    fields, published = MODELS[name]
    (tmp_path / "config.json").write_text(json.dumps(COMMON | fields))
    assert count_parameters(find_subject(tmp_path / "config.json")).total == published
