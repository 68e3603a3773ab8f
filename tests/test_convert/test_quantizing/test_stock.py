"""Stock models: what Transformers loads is what was measured, under the names and with the config that vLLM reads.

vLLM's names are those of its compressed-tensors loader: `weight_packed`, `weight_scale`, `weight_shape` for packed
weights, `weight` and `weight_scale` beside int8 activations, and for experts each.
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from stellarbyte.errors import UserError
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.quantization.compressed import restored
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings

from .conftest import FEW, PASS_ALL
from .test_command import report_of, run

SIZES = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3},
    **{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "tie_word_embeddings": False},
}
EXPERTS = {"num_experts_per_tok": 2}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, **EXPERTS, num_local_experts=3, sliding_window=None)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, **EXPERTS, num_experts=3, moe_intermediate_size=32, head_dim=8)
    ),
}
# Where each family keeps an expert's first matrix, and its router.
EXPERT = {
    "mixtral": ("block_sparse_moe.experts.1.w1", "block_sparse_moe.gate", 64),
    "qwen3_moe": ("mlp.experts.1.gate_proj", "mlp.gate", 32),
}
PACKED = ("--method", "rtn", "--group-size", "16", *FEW, *PASS_ALL)


@pytest.fixture(scope="module")
def stock(tmp_path_factory, tokenizer):
    """Family -> a tiny model's folder; nobody may change it."""
    home = tmp_path_factory.mktemp("stock")
    for family, make in MODELS.items():
        torch.manual_seed(0)
        make().save_pretrained(home / family)
        tokenizer.save_files(tokenizer.files, home / family)
    return {family: home / family for family in MODELS}


def tensors_of(folder):
    return {key: x for file in sorted(folder.glob("*.safetensors")) for key, x in load_file(file).items()}


def dequantised(folder, settings, at):
    """The folder of floats that the quantised one stands for."""
    found = restored(tensors_of(folder), settings)
    floats = {key: x.dequantized() if isinstance(x, QuantizedWeight) else x for key, x in found.items()}
    at.mkdir()
    from safetensors.torch import save_file

    save_file(floats, at / "model.safetensors", {"format": "pt"})
    fields = json.loads((folder / "config.json").read_text())
    del fields["quantization_config"]
    (at / "config.json").write_text(json.dumps(fields))
    return at


@pytest.mark.long
@pytest.mark.parametrize("family", MODELS)
def test_transformers_computes_what_the_codes_say(stock, text, tmp_path, family) -> None:
    folder, settings = tmp_path / "q", QuantizationSettings(method="rtn", group_size=16)
    assert run(stock[family], folder, *PACKED, "--data", str(text)) == 0
    floats = dequantised(folder, settings, tmp_path / "floats")
    ids = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(floats, dtype="auto")(ids).logits
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder, dtype="auto")(ids).logits, expected)
        assert torch.equal(load_model(folder, "cpu")(ids).logits, expected)
    _check_names(folder, family)


def _check_names(folder, family) -> None:
    tensors, config = tensors_of(folder), json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    (group,) = config["config_groups"].values()
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 16, "symmetric": True, "dynamic": False}
    assert group["targets"] == ["Linear"]
    assert weights.items() <= group["weights"].items()
    assert group["input_activations"] is None
    assert "lm_head" in config["ignore"] and tensors["lm_head.weight"].dtype == torch.float32
    linears = {"self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32), "self_attn.o_proj": (32, 32)}
    if family in EXPERT:
        expert, router, rows = EXPERT[family]
        linears[expert] = (rows, 32)
        assert f"model.layers.1.{router}" in config["ignore"]
        assert tensors[f"model.layers.1.{router}.weight"].shape == (3, 32)
    else:
        linears |= {"mlp.gate_proj": (64, 32), "mlp.down_proj": (32, 64)}
    for name, (rows, columns) in linears.items():
        stem = f"model.layers.1.{name}"
        packed, scale, shape = (tensors[f"{stem}.weight_{part}"] for part in ("packed", "scale", "shape"))
        assert (packed.dtype, packed.shape) == (torch.int32, (rows, columns * 4 // 32))
        assert (scale.dtype, scale.shape) == (torch.float32, (rows, columns // 16))
        assert (shape.dtype, shape.tolist()) == (torch.int64, [rows, columns])
        assert f"{stem}.weight" not in tensors and f"{stem}.weight_g_idx" not in tensors
    everything = report_of(folder)["weights"]
    assert everything["all"] == everything["quantised"] + sum(
        torch.Size(shape).numel() for shape in everything["kept"].values()
    )


@pytest.mark.long
def test_int8_beside_rounded_inputs(stock, text, tmp_path) -> None:
    options = ("--method", "int8-dynamic", *FEW, "--data", str(text), *PASS_ALL)
    assert run(stock["llama"], tmp_path / "q", *options) == 0
    tensors = tensors_of(tmp_path / "q")
    weight, scale = (tensors[f"model.layers.0.mlp.up_proj.weight{part}"] for part in ("", "_scale"))
    assert (weight.dtype, weight.shape, scale.shape) == (torch.int8, (64, 32), (64, 1))
    config = json.loads((tmp_path / "q" / "config.json").read_text())["quantization_config"]
    inputs = config["config_groups"]["group_0"]["input_activations"]
    assert config["format"] == "int-quantized"
    assert (inputs["strategy"], inputs["dynamic"], inputs["num_bits"]) == ("token", True, 8)


def test_what_transformers_could_not_load_is_refused(stock, text, tmp_path) -> None:
    with pytest.raises(UserError, match="mixtral"):
        run(stock["mixtral"], tmp_path / "q", *PACKED, "--no-symmetric", "--data", str(text))


@pytest.mark.long
def test_head_and_embedding_by_choice(stock, text, tmp_path) -> None:
    folder = tmp_path / "q"
    assert run(stock["llama"], folder, *PACKED, "--head", "--embeddings", "--data", str(text)) == 0
    assert {"lm_head.weight_packed", "model.embed_tokens.weight_packed"} <= tensors_of(folder).keys()
    floats = dequantised(folder, QuantizationSettings(method="rtn", group_size=16), tmp_path / "floats")
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(floats, dtype="auto")(ids).logits
        assert torch.equal(load_model(folder, "cpu")(ids).logits, expected)
