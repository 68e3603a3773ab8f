import json

import pytest

from convert import config as convert_config
from stellarbyte.errors import UserError
from stellarbyte_jax.config import RopeScaling
from stellarbyte_torch import ByteConfig as TorchByteConfig
from test_convert.models import tiny
from test_convert.switches import grid

every_config = pytest.mark.parametrize("config", grid().values(), ids=grid().keys())


@every_config
def test_there_and_back(config):
    assert convert_config.from_hf(json.loads(json.dumps(convert_config.to_hf(config, "float32"))), "x") == config


@every_config
def test_what_transformers_saves_is_read(config, tmp_path):
    TorchByteConfig(**convert_config.to_hf(config, "float32")).save_pretrained(tmp_path)
    assert convert_config.read_hf(tmp_path) == config


@every_config
def test_transformers_saves_the_same_file(config, tmp_path):
    ours = convert_config.to_hf(config, "float32")
    TorchByteConfig(**ours).save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "config.json").read_text())
    del theirs["transformers_version"]
    assert theirs == ours


def test_scaling_and_pruned_heads_are_plain_json():
    scaling = RopeScaling("yarn", 4.0, beta_fast=16.0)
    config = tiny(position_embedding="rope", rope_scaling=scaling, pruned_heads=((0, 1), (2,)))
    written = convert_config.to_hf(config, "float32")
    assert written["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0}
    assert written["pruned_heads"] == [[0, 1], [2]]
    assert convert_config.to_hf(tiny(), "float32")["rope_scaling"] is None


def test_defaults_fill_what_a_config_leaves_out():
    assert convert_config.from_hf({"model_type": "stellarbyte", "vocab_size": 99}, "x").vocab_size == 99


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "llama"}, r"cfg describes a model of type 'llama', expected 'stellarbyte'"),
        ({"model_type": None}, "names no model_type"),
        ({"hiden_size": 3}, "cfg: hiden_size is not a field; did you mean hidden_size"),
        ({"quantization_config": {}}, "quantization_config is not a field"),
        ({"hidden_size": "24"}, "hidden_size is '24', expected an integer"),
        ({"eos_token_id": [1, 2]}, "eos_token_id is a list, expected an integer"),
        ({"num_key_value_heads": 3}, "num_key_value_heads 3 must divide"),
        ({"pruned_heads": [[0]]}, "pruned_heads lists 1 layers, but num_hidden_layers is 2"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling.rope_type is 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters is not a field"),
    ],
)
def test_bad_configs_are_refused(change, complaint):
    with pytest.raises(UserError, match=complaint):
        convert_config.from_hf(convert_config.to_hf(tiny(), "float32") | change, "cfg")


def test_a_dtype_that_xpos_overflows_is_refused():
    config = tiny(max_position_embeddings=64, xpos_scale_base=2.0)
    convert_config.to_hf(config, "float32")
    with pytest.raises(UserError, match=r"xpos_scale_base 2\.0 lets XPos leave the range of float16"):
        convert_config.to_hf(config, "float16")


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        convert_config.read_hf(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no config\.json"):
        convert_config.read_hf(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="not a JSON object"):
        convert_config.read_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        convert_config.read_hf(tmp_path)


# What Transformers 4 and 5 may write into any config.json.
LEFTOVERS = {
    **{"quantization_config": None, "pretraining_tp": 1, "mlp_bias": False, "is_decoder": True, "layer_types": None},
    **{"_attn_implementation_autoset": True, "torchscript": False, "tf_legacy_loss": False, "use_bfloat16": False},
    **{"chunk_size_feed_forward": 0, "cross_attention_hidden_size": None, "add_cross_attention": False},
    **{"pruned_heads": {}, "tie_encoder_decoder": False, "finetuning_task": None, "prefix": None, "sep_token_id": None},
    **{"decoder_start_token_id": None, "task_specific_params": None, "tokenizer_class": None, "max_length": 20},
    **{"do_sample": False, "temperature": 0.7, "top_k": 50, "suppress_tokens": None, "bad_words_ids": None},
    **{"return_dict": True, "id2label": {"0": "LABEL_0"}, "problem_type": None, "unsloth_version": "2025.1"},
    **{
        "output_hidden_states": False,
        "torch_dtype": "float32",
        "use_sliding_window": False,
        "attn_implementation": None,
    },
}


def test_what_transformers_writes_into_any_config_is_passed_over():
    config = tiny(position_embedding="rope")
    assert convert_config.from_hf(convert_config.to_hf(config, "float32") | LEFTOVERS, "cfg") == config


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_scaling": RopeScaling("linear", 2.0)}),
        ({"rope_scaling": {"rope_type": "default"}}, {}),
        ({"rope_scaling": {"type": "default", "factor": 1.0}}, {}),
        ({"rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 3}}, "dynamic"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 5e5}, {"rope_theta": 5e5}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 1.0}}, "linear"),
        ({"rope_parameters": None}, {}),
        ({"layer_types": ["full_attention"] * 2}, {}),
        ({"layer_types": ["sliding_attention"] * 2, "sliding_window": 5}, {"sliding_window": 5}),
    ],
)
def test_positions_as_transformers_writes_them(fields, expected):
    if isinstance(expected, str):
        factor = (fields.get("rope_scaling") or fields["rope_parameters"])["factor"]
        expected = {"rope_scaling": RopeScaling(expected, float(factor))}
    mapping = convert_config.to_hf(tiny(position_embedding="rope"), "float32")
    del mapping["rope_theta"], mapping["rope_scaling"]
    assert convert_config.from_hf(mapping | fields, "cfg") == tiny(position_embedding="rope", **expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"quantization_config": {"bits": 4}}, r"quantization_config .*\{'bits': 4\} would change the model"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder .*True would change"),
        ({"mlp_bias": True}, "mlp_bias .*True would change"),
        ({"pretraining_tp": 2}, "pretraining_tp .*2 would change"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor .*0\.5 would change"),
        ({"rope_parameters": {"rope_theta": 3.0}}, r"rope_theta is 10000\.0, but rope_parameters says 3\.0"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, r"rope_parameters\.partial_rotary_factor 0\.5 would"),
        ({"rope_parameters": [1]}, r"rope_parameters is \[1\], expected a mapping"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, "keep one of them"),
        ({"rope_scaling": {"type": "su", "factor": 2.0}}, r"rope_scaling.rope_type is 'su'"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "would scale nothing"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types .* would change"),
        ({"no_such_field": 1}, "no_such_field is not a field"),
    ],
)
def test_what_would_change_the_model_is_refused_by_name_and_value(change, complaint):
    mapping = convert_config.to_hf(tiny(position_embedding="rope"), "float32")
    with pytest.raises(UserError, match=complaint):
        convert_config.from_hf(mapping | change, "cfg")


@pytest.mark.parametrize(
    ("change", "ids"),
    [
        ({}, (0, 1, 2)),
        ({"pad_token_id": None}, (0, 1, 2)),
        ({"pad_token_id": 1}, (0, 1, 2)),
        ({"eos_token_id": [1]}, (0, 1, 2)),
        ({"eos_token_id": [7, 1]}, (0, 1, 2)),
        ({"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}, (0, 1, 2)),
        ({"pad_token_id": 5}, (0, 1, 5)),
        ({"eos_token_id": [7, 8]}, r"eos_token_id \[7, 8\] is a list without the tokenizer's own 1"),
    ],
)
def test_three_special_tokens_out_of_what_hugging_face_allows(change, ids, tokenizer, tmp_path):
    tokenizer.save_files(tokenizer.files, tmp_path)
    fields = convert_config.to_hf(tiny(vocab_size=300), "float32") | change
    (tmp_path / "config.json").write_text(json.dumps(fields))
    if isinstance(ids, str):
        with pytest.raises(UserError, match=ids):
            convert_config.read_hf(tmp_path)
        return
    config = convert_config.read_hf(tmp_path)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids
