import copy
import dataclasses
import inspect
import json
import math
import re
from typing import Any, get_args

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, LlamaConfig, Qwen3MoeConfig

from convert import config as convert_config
from convert.config import from_hf
from stellarbyte import architecture as jax_side
from stellarbyte.architecture import RopeScaling
from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig as JaxByteConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_torch import ByteConfig
from stellarbyte_torch import configuration_stellarbyte as torch_side

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
    {"eos_token_id": 0},
    {"max_position_embeddings": 32768, "xpos_scale_base": 512},
    {"position_embedding": "none", "head_dim": 63},
    {"attention_bias": True, "qk_norm": True, "sliding_window": 1, "attention_dropout": 0.1},
    {
        "parallel_residual": True,
        "residual": "deepnorm",
        "drop_path_rate": 0.5,
        "hidden_dropout": 0,
        "residual_dropout": 0.2,
    },
    {"layer_scale_init": 0.1},
    {"num_experts": 4, "num_experts_per_tok": 4, "num_shared_experts": 1, "moe_capacity_factor": 1.5},
    {"num_experts": 4, "moe_intermediate_size": 8, "norm_topk_prob": False, "router_aux_loss_coef": 0},
    {"num_hidden_layers": 2, "pruned_heads": ((0, 11), ())},
    {"num_hidden_layers": 3, "intermediate_size": (24, 1, 9)},
    {"num_hidden_layers": 2, "intermediate_size": (24, 24)},  # which is 24
    {"num_hidden_layers": 2, "intermediate_size": (24, 24), "num_experts": 4},
]
# Given as a dict here, as a RopeScaling on the JAX side.
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4},
    {"rope_type": "yarn", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "beta_fast": 16.0, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5, "original_max_position_embeddings": 512},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
]

REFUSED: list[dict[str, Any]] = [
    {"vocab_size": 0},
    {"hidden_size": -1},
    {"intermediate_size": 0},
    {"num_hidden_layers": 2, "intermediate_size": (4, 0)},
    {"num_hidden_layers": 2, "intermediate_size": (4, 2**24 + 1)},
    {"num_hidden_layers": 3, "intermediate_size": (4, 5)},
    {"num_hidden_layers": 2, "intermediate_size": (4, 5, 4)},
    {"intermediate_size": ()},
    {"num_hidden_layers": 2, "intermediate_size": (8, 16), "num_experts": 2},
    {"num_hidden_layers": 2, "intermediate_size": (2**24, 2**23), "hidden_size": 2**20},
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
    {"position_embedding": "rope", "xpos_learnable": True},
    {"max_position_embeddings": 65536},
    {"xpos_scale_base": 1.0},
    {"sliding_window": 0},
    {"drop_path_rate": 1.0},
    {"hidden_dropout": -0.1},
    {"layer_scale_init": 0.0},
    {"layer_scale_init": 0.1, "residual": "deepnorm"},
    {"num_experts": -1},
    {"num_experts": 2, "num_experts_per_tok": 3},
    {"num_experts_per_tok": -1},
    {"num_shared_experts": 1},
    {"moe_capacity_factor": 1.0},
    {"num_experts": 2, "moe_intermediate_size": 0},
    {"num_experts": 2, "moe_intermediate_size": 12},
    {"num_experts": 2, "hidden_size": 36, "num_attention_heads": 2},
    {"router_z_loss_coef": -1.0},
    {"pruned_heads": ((0,),)},
    {"num_hidden_layers": 1, "pruned_heads": ((1, 0),)},
    {"num_hidden_layers": 1, "pruned_heads": (tuple(range(12)),)},
    # What no machine holds, and what is no number of this kind.
    *({name: 10**12} for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")),
    *({name: 10**12} for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")),
    *({name: 10**12} for name in ("sliding_window", "num_experts", "num_experts_per_tok", "num_shared_experts")),
    {"num_experts": 2, "moe_intermediate_size": 10**12},
    {"hidden_size": 2**19, "num_attention_heads": 2**12, "num_hidden_layers": 2**14},
    {"rms_norm_eps": math.inf},
    {"rms_norm_eps": 1e-320},
    {"xpos_scale_base": 1e300},
    {"initializer_range": -math.inf},
    {"rope_theta": math.nan},
    {"layer_scale_init": math.inf},
    {"num_experts": 2, "moe_capacity_factor": math.inf},
    {"router_aux_loss_coef": math.nan},
    # Two mistakes at once: both sides must complain of the same one.
    {"num_attention_heads": 0, "vocab_size": 0},
    {"hidden_size": 770, "num_key_value_heads": 5},
]
# What Hugging Face tools make of the special tokens, and training in JAX does not.
TOKENS: list[dict[str, Any]] = [
    {"bos_token_id": -1},
    {"eos_token_id": 32000},
    {"pad_token_id": 50000},
    {"vocab_size": 2},
    {"pad_token_id": 1},
    {"pad_token_id": 0},
]


def test_fields_and_defaults_are_those_of_the_jax_side() -> None:
    ours = {field.name: field.default for field in dataclasses.fields(ByteConfig)}
    inherited = {field.name for field in dataclasses.fields(ByteConfig.__base__)}
    assert set(ours) - inherited == {*FIELDS, "use_cache"}
    assert {name: ours[name] for name in FIELDS} == {
        field.name: field.default for field in dataclasses.fields(JaxByteConfig)
    }


def test_both_sides_have_one_list_of_contradictions() -> None:
    assert inspect.getsource(torch_side.contradiction) == inspect.getsource(jax_side.contradiction)


def test_exports_and_the_model_itself_write_the_same_marks_for_stock_models() -> None:
    marks = torch_side.marks_for_stock_models, convert_config.marks_for_stock_models
    assert inspect.getsource(marks[0]) == inspect.getsource(marks[1])
    assert torch_side._IN_LLAMA == convert_config._IN_LLAMA


@pytest.mark.parametrize("name", ["hidden_act", "position_embedding", "residual"])
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
    with pytest.raises(ValueError, match=r"^[a-z_.0-9]+ ") as ours:
        ByteConfig(**changes)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("changes", TOKENS, ids=str)
def test_what_jax_alone_needs_of_special_tokens_jax_alone_refuses(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^(bos|eos|pad)_token_id -?\d+ must (be inside the vocabulary|differ from)"):
        JaxByteConfig(**changes)
    assert vars(ByteConfig(**changes)).items() >= changes.items()


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
    with pytest.raises(ValueError, match=r"leave the range of float16 .*: use at least 1851$"):
        ByteConfig(**changes, dtype="float16")
    ByteConfig(**{**changes, "xpos_scale_base": 1851}, dtype="float16")


def test_types_are_checked() -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match="expected int, got str"):
        ByteConfig(vocab_size="32000")


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
def test_rope_scaling_is_that_of_the_jax_side(scaling: dict[str, Any], tmp_path) -> None:
    changes = {"position_embedding": "rope", "rope_theta": 500.0}
    theirs = JaxByteConfig(**changes, rope_scaling=RopeScaling(**scaling))
    nulls = dict.fromkeys(to_dict(theirs.rope_scaling))
    ours = ByteConfig(**changes, rope_scaling={**nulls, **scaling})
    assert ours.rope_scaling == scaling == {k: v for k, v in to_dict(theirs)["rope_scaling"].items() if v is not None}
    for name, value in (("factor", 0.5), ("beta_fast", -1.0), ("low_freq_factor", 9.0)):
        with pytest.raises(UserError) as jax_error:
            JaxByteConfig(**changes, rope_scaling=RopeScaling(**{**scaling, name: value}))
        with pytest.raises(ValueError, match=r"^rope_scaling\.") as torch_error:
            ByteConfig(**changes, rope_scaling={**scaling, name: value})
        assert str(torch_error.value) == str(jax_error.value)
    for position in ("xpos", "none"):
        with pytest.raises(ValueError, match=f"^rope_scaling {scaling['rope_type']} .*rope"):
            ByteConfig(position_embedding=position, rope_scaling=scaling)
    ours.save_pretrained(tmp_path)
    assert ByteConfig.from_pretrained(tmp_path).rope_scaling == scaling
    assert "rope_parameters" not in ours.to_dict()
    # transformers' shape, both ways.
    again = ByteConfig(position_embedding="rope", rope_parameters=ours.rope_parameters)
    assert again.rope_parameters == ours.rope_parameters
    assert again.rope_theta == 500.0


@pytest.mark.parametrize(
    ("scaling", "complaint"),
    [
        ({"factor": 2.0}, "rope_scaling.rope_type None must be given, as str"),
        ({"rope_type": "linear"}, "rope_scaling.factor None must be given, as float"),
        ({"rope_type": "linear", "factor": "2"}, "rope_scaling.factor '2' must be given, as float"),
        ({"rope_type": "linear", "factor": True}, "rope_scaling.factor True must be given, as float"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": 1}, "rope_scaling.truncate 1 must be given, as bool"),
        ({"rope_type": "yarn", "factor": 2.0, "betafast": 1.0}, "rope_scaling.betafast 1.0 is not a setting: choose"),
        ({"rope_type": "longrope", "factor": 2.0}, "rope_scaling.rope_type 'longrope' must be one of linear, dynamic,"),
    ],
)
def test_settings_of_rope_scaling_are_checked(scaling: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(complaint)}"):
        ByteConfig(position_embedding="rope", rope_scaling=scaling)


def test_rope_parameters_without_scaling() -> None:
    config = ByteConfig(rope_theta=7.0, position_embedding="rope")
    assert config.rope_parameters == {"rope_theta": 7.0, "rope_type": "default"}
    # XPos is not what transformers would take it for.
    assert not any(hasattr(ByteConfig(position_embedding=other), "rope_parameters") for other in ("xpos", "none"))
    for nothing in ({"rope_theta": 8.0}, {"rope_type": "default", "rope_theta": 8.0}):
        config = ByteConfig(rope_parameters=nothing)
        assert (config.rope_theta, config.rope_scaling) == (8.0, None)


def test_the_jax_side_reads_what_save_pretrained_writes(tmp_path) -> None:
    for changes in ACCEPTED:
        ByteConfig(**changes).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert from_hf(written, "config.json") == JaxByteConfig(**changes)
    for scaling in SCALINGS:
        ByteConfig(position_embedding="rope", rope_scaling=scaling).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert from_hf(written, "config.json").rope_scaling == RopeScaling(**scaling)


def test_round_trip_through_json_keeps_every_field(tmp_path) -> None:
    for changes in ACCEPTED:
        config = ByteConfig(**changes, dtype="bfloat16", task="poems")
        config.save_pretrained(tmp_path)
        for loaded in (ByteConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is ByteConfig
            assert loaded.dtype is torch.bfloat16
            assert loaded.task == "poems", "Hugging Face's configs carry keys that they do not know"
            assert json.loads(loaded.to_json_string()) == json.loads(config.to_json_string())
        assert ByteConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


def test_a_config_json_with_the_schema_alone_is_enough() -> None:
    config = dataclasses.asdict(JaxByteConfig())
    assert ByteConfig.from_dict({**config, "model_type": "stellarbyte"}).to_dict() == ByteConfig().to_dict()


def test_saving_tells_of_what_loading_will_refuse_and_saves(tmp_path, caplog) -> None:
    config = ByteConfig(**TINY)
    config.num_key_value_heads = 3
    config.save_pretrained(tmp_path)
    assert "num_key_value_heads 3 must divide" in caplog.text
    with pytest.raises(ValueError, match="num_key_value_heads 3 must divide"):
        ByteConfig.from_pretrained(tmp_path)


def test_hugging_face_tools_may_unset_and_list_token_ids(tmp_path) -> None:
    config = ByteConfig(**TINY)
    config.pad_token_id = None
    config.eos_token_id = [1, 5]
    config.save_pretrained(tmp_path)
    assert ByteConfig.from_pretrained(tmp_path).eos_token_id == [1, 5]


def test_vocabulary_is_hugging_faces() -> None:
    ours = {
        *("position_embedding", "xpos_scale_base", "xpos_learnable", "rope_theta", "rope_scaling", "pruned_heads"),
        *("qk_norm", "residual", "parallel_residual", "layer_scale_init", "drop_path_rate", "hidden_dropout"),
        *("residual_dropout", "num_shared_experts", "router_z_loss_coef", "moe_capacity_factor"),
    }
    theirs = {**LlamaConfig().to_dict(), **Qwen3MoeConfig().to_dict()}
    assert set(FIELDS) - ours <= {*theirs, "num_experts"}


def test_rope_parameters_change_in_place_as_in_transformers_configs() -> None:
    config = ByteConfig(position_embedding="rope")
    config.rope_parameters.update({"rope_type": "linear", "factor": 4.0, "rope_theta": 7.0})
    assert (config.rope_theta, config.rope_scaling) == (7.0, {"rope_type": "linear", "factor": 4.0})
    config.rope_parameters["factor"] = 2.0
    assert config.rope_scaling == {"rope_type": "linear", "factor": 2.0}
    config.rope_parameters["rope_type"] = "default"
    assert config.rope_scaling is None
    assert copy.deepcopy(config.rope_parameters) == {"rope_type": "default", "rope_theta": 7.0}


def test_only_a_mixture_of_experts_has_router_logits_to_return(tmp_path) -> None:
    assert not hasattr(ByteConfig(), "output_router_logits")
    config = ByteConfig(num_experts=2)
    assert config.output_router_logits is False
    config.output_router_logits = True
    config.save_pretrained(tmp_path)
    assert ByteConfig.from_pretrained(tmp_path).output_router_logits is True


def test_tensor_parallel_plan_has_what_the_architecture_has() -> None:
    """Llama's for a dense model, Qwen3Moe's for experts, whose modules ours are named after."""
    dense = ByteConfig().base_model_tp_plan
    assert dense == LlamaConfig.base_model_tp_plan
    sparse = ByteConfig(num_experts=2, qk_norm=True).base_model_tp_plan
    # Qwen3Moe may keep some layers dense, we may not.
    only_dense = {name for name in dense if ".mlp." in name}
    assert sparse == {name: how for name, how in Qwen3MoeConfig.base_model_tp_plan.items() if name not in only_dense}
    shared = ByteConfig(num_experts=2, qk_norm=True, num_shared_experts=1).base_model_tp_plan
    assert shared == sparse | {name.replace(".mlp.", ".mlp.shared_experts."): dense[name] for name in only_dense}
    assert ByteConfig(xpos_learnable=True).base_model_tp_plan.keys() - dense == {"rotary_emb"}
    assert ByteConfig.base_model_ep_plan == Qwen3MoeConfig.base_model_ep_plan
