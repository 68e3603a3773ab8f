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
