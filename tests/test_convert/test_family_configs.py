"""The config.json of stock models: what is read of it, what is refused, and which families a model here fits."""

import json
from typing import Any

import pytest
import yaml

from convert import config as hf_config
from convert.families import config_json, fit
from convert.families.registry import FAMILIES
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig, RopeScaling
from test_convert.models import tiny
from test_convert.stock import ROPES, stock_config

IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def content(family: str, rope: str = "default", **fields: Any) -> dict[str, Any]:
    """config.json as Transformers 5 writes it."""
    return json.loads(json.dumps({**stock_config(family, rope).to_dict(), **fields}))


def read(family: str, mapping: dict[str, Any]) -> ByteConfig:
    return config_json.from_hf(FAMILIES[family], mapping, IDS, "config.json")


def refusal(family: str, mapping: dict[str, Any]) -> str:
    with pytest.raises(UserError) as found:
        read(family, mapping)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_config_json_leaves_out_is_what_the_class_takes(family: str) -> None:
    whole = content(family, num_attention_heads=32, hidden_size=64)  # the defaults of key and value heads divide 32
    always = {"model_type", *config_json.NEEDED, "num_experts_per_tok", "num_local_experts", "num_experts"}
    always |= {"moe_intermediate_size", "intermediate_size"}
    bare = {name: value for name, value in whole.items() if name in always}
    theirs, found = type(stock_config(family))(**bare), read(family, bare)
    rope = theirs.rope_parameters
    assert (found.rope_theta, found.rope_scaling, rope["rope_type"]) == (rope["rope_theta"], None, "default")
    for name in ("num_key_value_heads", "hidden_act", "initializer_range", "tie_word_embeddings", "attention_dropout"):
        assert getattr(found, name) == getattr(theirs, name), name
    width = theirs.hidden_size // theirs.num_attention_heads
    assert found.head_dim == (getattr(theirs, "head_dim", None) or width)
    assert found.sliding_window == getattr(theirs, "sliding_window", None)
    for name in ("norm_topk_prob", "router_aux_loss_coef") if found.num_experts else ():
        assert getattr(found, name) == getattr(theirs, name, True), name
    with_bias = {"qwen2": True}.get(family, getattr(theirs, "attention_bias", False))
    assert found.attention_bias == with_bias


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_4_says_the_same_in_other_words(family: str, rope: str) -> None:
    mapping = content(family, rope)
    scaling = mapping.pop("rope_parameters")
    older = mapping | {"rope_theta": scaling.pop("rope_theta"), "torch_dtype": "float32"}
    scaling["type"] = scaling.pop("rope_type")
    older["rope_scaling"] = None if rope == "default" else scaling
    assert read(family, older) == read(family, content(family, rope))


def test_yarn_and_llama3_take_from_the_context_what_is_left_out() -> None:
    mapping = content("qwen2", max_position_embeddings=64)
    yarn = mapping | {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 5.0, "original_max_position_embeddings": 16}
    }
    assert read("qwen2", yarn).rope_scaling == RopeScaling("yarn", 4.0, original_max_position_embeddings=16)
    llama3 = {"rope_type": "llama3", "rope_theta": 5.0, "factor": 2, "low_freq_factor": 1, "high_freq_factor": 4}
    found = read("llama", content("llama", max_position_embeddings=64, rope_parameters=llama3)).rope_scaling
    assert found is not None and found.original_max_position_embeddings == 64


@pytest.mark.parametrize(
    ("family", "fields", "window"),
    [
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"use_sliding_window": False, "sliding_window": 4}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0, "layer_types": None}, 4),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "layer_types": None}, None),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention"] * 2}, 4),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}, 4),
    ],
)
def test_windows(family: str, fields: dict[str, Any], window: int | None) -> None:
    mapping = {name: value for name, value in content(family, **fields).items() if value is not None}
    assert read(family, mapping | {"sliding_window": fields["sliding_window"]}).sliding_window == window


@pytest.mark.parametrize(
    ("family", "fields", "complaint"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias is not a field of StellarByte, and True would change the model"),
        ("llama", {"sliding_window": 4}, "sliding_window is no field of a LlamaForCausalLM"),
        ("llama", {"position_embedding": "xpos", "rope_parameters": None}, "position_embedding is no field"),
        ("llama", {"qk_norm": True}, "qk_norm is no field of a LlamaForCausalLM"),
        ("llama", {"per_layer_config": {"0": {"num_attention_heads": 2}}}, "per_layer_config"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "'longrope'"),
        ("llama", {"hidden_act": "xielu"}, "hidden_act is 'xielu'"),
        ("mistral", {"attention_bias": True}, "attention_bias is no field of a MistralForCausalLM"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "layer_types": None},
            "max_window_layers is not a field of StellarByte, whose layers all have a window or none: 1 of 2 layers",
        ),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is not a field of StellarByte, and 2 would"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers is not a field of StellarByte, and [0] would"),
        ("qwen3_moe", {"num_experts": 3, "num_local_experts": 4}, "which is not one number: set num_experts"),
        ("mixtral", {"num_experts_per_tok": "two"}, "num_experts_per_tok is 'two'"),
        ("mixtral", {"num_local_experts": None}, "num_experts"),
        (
            "llama",
            {"intermediate_size": [24, 12]},
            "intermediate_size is [24, 12], and a LlamaForCausalLM has one width",
        ),
    ],
)
def test_what_has_no_place_here_is_refused_by_its_name(family: str, fields: dict[str, Any], complaint: str) -> None:
    assert complaint in refusal(family, content(family, **fields))


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "rms_norm_eps"])
def test_a_missing_size_is_named(name: str) -> None:
    mapping = content("llama")
    del mapping[name]
    assert f"config.json lacks {name}: fetch or save it again" == refusal("llama", mapping)


def test_another_architecture_is_told_which_ones_there_are() -> None:
    with pytest.raises(UserError, match="of type 'gpt2', expected 'stellarbyte' or one of llama, mistral, qwen2"):
        hf_config.from_hf({"model_type": "gpt2"}, "config.json")


# Which families a model fits.

LLAMA = {"position_embedding": "rope"}
FITS: list[tuple[dict[str, Any], str, str | None]] = [
    (LLAMA, "llama mistral", None),
    ({**LLAMA, "sliding_window": 4}, "mistral", None),
    ({**LLAMA, "attention_bias": True}, "llama", None),
    ({**LLAMA, "qk_norm": True}, "qwen3", None),
    ({**LLAMA, "layer_scale_init": 0.1}, "llama mistral", None),
    ({**LLAMA, "num_experts": 4, "moe_intermediate_size": 8}, "mixtral", None),
    ({**LLAMA, "num_experts": 4, "moe_intermediate_size": 8, "qk_norm": True}, "qwen3_moe", None),
    ({}, "", "position_embedding is 'xpos', but LlamaForCausalLM turns queries and keys by plain RoPE"),
    ({"position_embedding": "none"}, "", "position_embedding is 'none', but LlamaForCausalLM turns"),
    ({**LLAMA, "residual": "deepnorm"}, "", "residual is 'deepnorm', but LlamaForCausalLM normalises before each"),
    ({**LLAMA, "parallel_residual": True}, "", "parallel_residual is true, but LlamaForCausalLM computes the feed-"),
    ({**LLAMA, "num_experts": 4, "num_shared_experts": 1, "moe_intermediate_size": 8}, "", "num_experts is 4, but "),
    ({**LLAMA, "num_experts": 4, "norm_topk_prob": False, "moe_intermediate_size": 8}, "", "has no experts"),
    ({**LLAMA, "pruned_heads": ((0, 2), (1, 3))}, "llama mistral", None),
    (
        {**LLAMA, "pruned_heads": ((0,), (1,))},
        "",
        "pruned_heads: layer 0 keeps more heads in one group than in another",
    ),
    ({**LLAMA, "pruned_heads": ((0, 1), ())}, "", "pruned_heads: layer 1 keeps 4 heads in 2 groups and layer 0 2 in 1"),
    (
        {**LLAMA, "num_attention_heads": 5, "num_key_value_heads": 1},
        "mistral",
        "hidden_size is 24, but LlamaForCausalLM",
    ),
    ({**LLAMA, "drop_path_rate": 0.1}, "llama mistral", None),
    ({**LLAMA, "intermediate_size": (20, 20)}, "llama mistral", None),
    (
        {**LLAMA, "intermediate_size": (20, 12)},
        "",
        "intermediate_size is a list, but LlamaForCausalLM has one width for all layers",
    ),
]
QWEN2 = "attention_bias is true, but Qwen2ForCausalLM has no bias on o_proj: LlamaForCausalLM has one"


@pytest.mark.parametrize(("fields", "families", "reason"), FITS)
def test_fits(fields: dict[str, Any], families: str, reason: str | None) -> None:
    found = {each.family.model_type: each for each in fit.fits(tiny(**fields))}
    assert [name for name, each in found.items() if not each.misfits] == families.split()
    reasons = [misfit.reason for misfit in found["llama"].misfits]
    assert reason is None or any(said.startswith(reason) or reason in said for said in reasons), reasons
    if "llama" in families.split():
        assert not reasons


def test_a_qwen2_goes_on_as_a_llama() -> None:
    found = {each.family.model_type: each for each in fit.fits(read("qwen2", content("qwen2")))}
    assert [misfit.reason for misfit in found["qwen2"].misfits] == [QWEN2]
    assert not found["llama"].misfits


def test_what_an_export_does_to_a_model_is_told() -> None:
    fields = {"layer_scale_init": 0.1, "pruned_heads": ((0, 2), (1, 3)), "drop_path_rate": 0.1}
    assert fit.fit(FAMILIES["llama"], tiny(**LLAMA, **fields)).remarks == (
        "LayerScale is folded into o_proj and down_proj",
        "heads that are pruned are gone, 2 are left in each layer",
        "drop_path_rate 0.1 is left out, as it acts in training alone",
    )


def test_explain_prints_a_table(tmp_path, capsys) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(yaml.safe_dump({"position_embedding": "rope", "hidden_size": 48, "num_attention_heads": 4}))
    assert main(["convert", "explain", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "llama       yes",
        "    stellarbyte convert to-hf RUN_DIR HF_DIR --as llama",
        "mistral     yes",
    ]
    at = lines.index("qwen2       no")
    assert lines[at + 1].startswith(
        "    attention_bias is false, but Qwen2ForCausalLM has biases on queries, keys and values"
    )
    assert main(["convert", "explain", str(path), "--json"]) == 0
    families = json.loads(capsys.readouterr().out)["families"]
    assert [family["family"] for family in families] == list(FAMILIES)
    assert families[3]["misfits"][0]["field"] == "qk_norm"


def test_explain_reads_runs_exports_and_configs_of_runs(run_dir, exported, capsys) -> None:
    for model in (run_dir, exported, "configs/run/quickstart.yaml"):
        assert main(["convert", "explain", str(model)]) == 0
        said = capsys.readouterr().out
        assert "position_embedding is 'xpos', but LlamaForCausalLM turns queries and keys by plain RoPE" in said
    assert main(["convert", "explain", "nothing"]) == 2
    assert "nothing is no run, no Hugging Face folder and no YAML file" in capsys.readouterr().err


def test_an_export_as_what_the_model_is_not_says_which_field_is_in_the_way(run_dir, tmp_path, capsys) -> None:
    assert main(["convert", "to-hf", str(run_dir), str(tmp_path / "hf"), "--as", "llama"]) == 2
    said = capsys.readouterr().err
    assert "is no LlamaForCausalLM: position_embedding is 'xpos', but LlamaForCausalLM turns queries and keys" in said
    assert "Use no --as, which exports any model as our own class" in said
    assert not (tmp_path / "hf").exists()
