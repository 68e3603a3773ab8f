import dataclasses
from typing import Any, get_args

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, LlamaConfig

from stellarbyte_jax.config import ByteConfig as JaxByteConfig
from stellarbyte_jax.errors import UserError
from stellarbyte_torch import ByteConfig

from .tiny import TINY

FIELDS = [field.name for field in dataclasses.fields(JaxByteConfig)]

ACCEPTED: list[dict[str, Any]] = [
    {},
    TINY,
    {"hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4},
    {"hidden_size": 100, "num_attention_heads": 3, "head_dim": 32},
    {"head_dim": 2},
    {"position_embedding": "rope", "rope_theta": 500000, "max_position_embeddings": 131072},
    {"xpos_learnable": True, "tie_word_embeddings": True},
    {"hidden_act": "gelu_pytorch_tanh"},
    {"vocab_size": 3, "bos_token_id": 2, "eos_token_id": 0, "pad_token_id": 1},
    {"max_position_embeddings": 32768, "xpos_scale_base": 512},
]

REFUSED: list[dict[str, Any]] = [
    {"vocab_size": 0},
    {"hidden_size": -1},
    {"intermediate_size": 0},
    {"num_hidden_layers": 0},
    {"num_attention_heads": 0},
    {"num_attention_heads": -4},
    {"hidden_size": 770},
    {"hidden_size": 772, "num_attention_heads": 13},
    {"num_key_value_heads": 5},
    {"num_key_value_heads": 0},
    {"num_key_value_heads": -3},
    {"num_attention_heads": 256},  # head_dim 3
    {"head_dim": 63},
    {"head_dim": 0},
    {"head_dim": -2},
    {"max_position_embeddings": 0},
    {"rms_norm_eps": 0.0},
    {"initializer_range": -0.02},
    {"rope_theta": 0.0},
    {"xpos_scale_base": 0.0},
    {"bos_token_id": -1},
    {"eos_token_id": 32000},
    {"pad_token_id": 50000},
    {"vocab_size": 2},
    {"pad_token_id": 1},
    {"eos_token_id": 0},
    {"position_embedding": "rope", "xpos_learnable": True},
    {"max_position_embeddings": 65536},
    {"xpos_scale_base": 1.0},
    # Two mistakes at once: both sides must complain of the same one.
    {"num_attention_heads": 0, "vocab_size": 0},
    {"hidden_size": 770, "num_key_value_heads": 5},
    {"rope_theta": -1.0, "pad_token_id": 1},
]


def test_fields_and_defaults_are_those_of_the_jax_side() -> None:
    ours = {field.name: field.default for field in dataclasses.fields(ByteConfig)}
    inherited = {field.name for field in dataclasses.fields(ByteConfig.__base__)}
    assert set(ours) - inherited == {*FIELDS, "use_cache"}
    assert {name: ours[name] for name in FIELDS} == {
        field.name: field.default for field in dataclasses.fields(JaxByteConfig)
    }


@pytest.mark.parametrize("name", ["hidden_act", "position_embedding"])
def test_literal_values_are_those_of_the_jax_side(name: str) -> None:
    theirs, ours = ({field.name: field.type for field in dataclasses.fields(c)} for c in (JaxByteConfig, ByteConfig))
    allowed = get_args(theirs[name])
    assert get_args(ours[name]) == allowed
    for value in allowed:
        assert getattr(ByteConfig(**{name: value}), name) == value
    with pytest.raises(StrictDataclassFieldValidationError, match=f"'{name}' expected one of"):
        ByteConfig(**{name: "learned"})


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_values_are_those_of_the_jax_side(changes: dict[str, Any]) -> None:
    theirs = dataclasses.asdict(JaxByteConfig(**changes))
    ours = ByteConfig(**changes)
    assert {name: getattr(ours, name) for name in FIELDS} == theirs


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_rejections_are_those_of_the_jax_side(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as theirs:
        JaxByteConfig(**changes)
    with pytest.raises(ValueError, match=r"^[a-z_]+ ") as ours:
        ByteConfig(**changes)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_xpos_range_of_each_dtype_is_that_of_the_jax_side(dtype: str) -> None:
    changes = {"max_position_embeddings": 8192, "xpos_scale_base": 100.0}
    with pytest.raises(UserError) as theirs:
        _unchecked_jax_config(**changes).check_xpos_range(dtype)
    for value in (dtype, getattr(torch, dtype)):
        with pytest.raises(ValueError, match=r"^xpos_scale_base 100\.0 ") as ours:
            ByteConfig(**changes, dtype=value)
        assert str(ours.value) == str(theirs.value)


def _unchecked_jax_config(**changes: Any) -> JaxByteConfig:
    config = object.__new__(JaxByteConfig)
    for field in dataclasses.fields(JaxByteConfig):
        object.__setattr__(config, field.name, changes.get(field.name, field.default))
    return config


def test_xpos_range_follows_the_dtype() -> None:
    changes = {"max_position_embeddings": 8192, "xpos_scale_base": 512.0}
    ByteConfig(**changes)
    ByteConfig(**changes, dtype="bfloat16")
    ByteConfig(**changes, position_embedding="rope", dtype="float16")
    with pytest.raises(ValueError, match=r"leave the range of float16 .*: use at least 926$"):
        ByteConfig(**changes, dtype="float16")
    ByteConfig(**{**changes, "xpos_scale_base": 926}, dtype="float16")


def test_types_are_checked() -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match="expected int, got str"):
        ByteConfig(vocab_size="32000")


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_rope_scaling_is_refused_rather_than_ignored(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*is not supported"):
        ByteConfig(**{name: {"rope_type": "linear", "factor": 2.0}})
    assert not hasattr(ByteConfig(**{name: None}), name)


def test_round_trip_through_json_keeps_every_field(tmp_path) -> None:
    for changes in ACCEPTED:
        config = ByteConfig(**changes, dtype="bfloat16", task="poems")
        config.save_pretrained(tmp_path)
        for loaded in (ByteConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is ByteConfig
            assert loaded.dtype is torch.bfloat16
            assert loaded.task == "poems", "Hugging Face's configs carry keys that they do not know"
            assert {name: getattr(loaded, name) for name in FIELDS} == {name: getattr(config, name) for name in FIELDS}
        assert ByteConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_a_config_json_with_the_schema_alone_is_enough() -> None:
    config = dataclasses.asdict(JaxByteConfig())
    assert ByteConfig.from_dict({**config, "model_type": "stellarbyte"}).to_dict() == ByteConfig().to_dict()


def test_saving_refuses_what_construction_refuses(tmp_path) -> None:
    config = ByteConfig(**TINY)
    config.num_key_value_heads = 3
    with pytest.raises(StrictDataclassClassValidationError, match="num_key_value_heads 3 must divide"):
        config.save_pretrained(tmp_path)


def test_hugging_face_tools_may_unset_and_list_token_ids(tmp_path) -> None:
    config = ByteConfig(**TINY)
    config.pad_token_id = None
    config.eos_token_id = [1, 5]
    config.save_pretrained(tmp_path)
    assert ByteConfig.from_pretrained(tmp_path).eos_token_id == [1, 5]


def test_vocabulary_is_hugging_faces() -> None:
    ours = {"position_embedding", "xpos_scale_base", "xpos_learnable", "rope_theta"}
    assert set(FIELDS) - ours <= set(LlamaConfig().to_dict())
