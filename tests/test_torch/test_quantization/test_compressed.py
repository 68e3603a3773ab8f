"""What is written in compressed-tensors' format is read, to the last bit, by Transformers alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from safetensors.torch import load_file

from stellarbyte_torch.quantization.compressed import config_fields, restored, stored
from stellarbyte_torch.quantization.grid import QuantizedWeight
from stellarbyte_torch.quantization.settings import QuantizationSettings

from ..tiny import tokens
from .folders import KINDS, SETTINGS, apart, faked, rounded, save_float, save_rounded

# Of a process in which StellarByte cannot be imported: an export's own files make the model.
ALONE = """
import json, sys
sys.modules["stellarbyte"] = sys.modules["stellarbyte_torch"] = None
import torch
from compressed_tensors.quantization import QuantizationArgs
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", trust_remote_code=True).eval()
    given = load_file(folder + "/expected")
    with torch.no_grad():
        logits = model(given["ids"]).logits
    print(json.dumps([logits.dtype == given["logits"].dtype, (logits - given["logits"]).abs().max().item()]))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("floats")
    return {kind: save_float(kind, folder / kind) for kind in KINDS}


@pytest.mark.long
def test_a_process_without_stellarbyte_computes_what_was_measured(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    made, ids = [], tokens(2, 12)
    narrow = {f"narrow {kind}": save_float(kind, tmp_path / kind, torch.bfloat16) for kind in ("ours", "llama")}
    some = dict.fromkeys(("experts", *narrow), ("w4a16", "w8a8")) | {"llama": ("w4a16_zero_points", "w8a8")}
    for kind, base in {**bases, **narrow}.items():
        for name in some.get(kind, SETTINGS):
            folder = save_rounded(base, SETTINGS[name], tmp_path / f"{kind} {name}")
            with torch.no_grad():
                logits = faked(base, SETTINGS[name], folder)(ids).logits
            save_file({"ids": ids, "logits": logits}, folder / "expected")
            made.append(folder)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", ALONE, *map(str, made)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {folder.name: result for folder, result in zip(made, found, strict=True)} == {
        folder.name: [True, 0.0] for folder in made
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_restored_gives_back_what_was_stored(bases: dict[str, Path], name: str) -> None:
    settings = SETTINGS[name]
    tensors = rounded(apart(load_file(bases["experts"] / "model.safetensors")), settings)
    again = restored(stored(tensors, settings), settings)
    assert again.keys() == tensors.keys()
    for key, x in tensors.items():
        y = again[key]
        pairs: list[tuple[Any, Any]] = [(x, y)]
        if isinstance(x, QuantizedWeight):
            assert isinstance(y, QuantizedWeight)
            pairs = [(x.codes, y.codes), (x.scale, y.scale), (x.zero_point, y.zero_point)]
        for a, b in pairs:
            assert (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b)), key


@pytest.mark.parametrize("name", SETTINGS)
def test_vllm_chooses_a_scheme_and_finds_what_that_loads(bases: dict[str, Path], name: str) -> None:
    """By the conditions and the parameters of vLLM's compressed_tensors.py, -_wNa16.py and -_w8a8_int8.py."""
    settings = SETTINGS[name]
    fields = config_fields(settings, [])
    (group,) = fields["config_groups"].values()
    weights = QuantizationArgs.model_validate(group["weights"])
    assert not weights.dynamic and weights.strategy in ("channel", "group")
    if settings.rounds_activations:
        inputs = QuantizationArgs.model_validate(group["input_activations"])
        assert fields["format"] == "int-quantized" and weights.symmetric and weights.num_bits == inputs.num_bits == 8
        assert inputs.strategy == "token" and inputs.dynamic and inputs.symmetric
    else:
        assert fields["format"] == "pack-quantized" and group["input_activations"] is None
        assert weights.num_bits in ((4, 8) if not weights.symmetric else range(2, 9))
    floats = load_file(bases["llama"] / "model.safetensors")
    found = stored(rounded(floats, settings), settings)
    for key, weight in floats.items():
        if not key.endswith("_proj.weight"):
            continue
        (O, I), bits = weight.shape, weights.num_bits  # noqa: E741 - the legend's letters
        scales = I // weights.group_size if weights.group_size else 1
        expected = {"weight_scale": ((O, scales), weight.dtype)}
        if settings.rounds_activations:
            expected["weight"] = ((O, I), torch.int8)
        else:
            expected["weight_packed"] = ((O, math.ceil(I * bits / 32)), torch.int32)
            expected["weight_shape"] = ((2,), torch.int64)
        if not weights.symmetric:
            expected["weight_zero_point"] = ((math.ceil(O * bits / 32), scales), torch.int32)
        stem = key.removesuffix("weight")
        there = {name.removeprefix(stem): x for name, x in found.items() if name.startswith(stem)}
        assert {name: (tuple(x.shape), x.dtype) for name, x in there.items()} == expected


def test_three_bits_take_three_bits(bases: dict[str, Path]) -> None:
    settings = SETTINGS["w3a16"]
    tensors = stored(rounded(load_file(bases["ours"] / "model.safetensors"), settings), settings)
    packed = tensors["model.layers.0.self_attn.q_proj.weight_packed"]
    assert packed.dtype == torch.int32
    assert packed.shape == (32, 3)


def test_config_says_what_is_left_as_it_was() -> None:
    fields = config_fields(QuantizationSettings(), ["model.layers.0.mlp.gate"])
    assert fields["quant_method"] == "compressed-tensors"
    assert fields["quantization_status"] == "compressed"
    assert fields["ignore"] == ["lm_head", "model.layers.0.mlp.gate"]
    assert config_fields(QuantizationSettings(include_head=True), [])["ignore"] == []


def test_an_embedding_is_of_the_same_kind() -> None:
    fields = config_fields(QuantizationSettings(include_embeddings=True), [])
    assert fields["config_groups"]["group_0"]["targets"] == ["Linear", "Embedding"]
    assert fields["dequantize"] is True
