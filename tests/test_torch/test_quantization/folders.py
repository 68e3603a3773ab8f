"""Quantised folders made by plain rounding alone, and the models that they should be."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from stellarbyte_torch.quantization.compressed import config_fields, stored
from stellarbyte_torch.quantization.grid import QuantizedWeight, rounded_rows
from stellarbyte_torch.quantization.settings import QuantizationSettings

from ..tiny import TINY, tiny_model

KINDS = ("ours", "experts", "llama")
SETTINGS = {
    "w4a16": QuantizationSettings(group_size=16),
    "w4a16_zero_points": QuantizationSettings(group_size=16, symmetric=False),
    "w3a16": QuantizationSettings(bits=3, group_size=16),
    "w8a16": QuantizationSettings(bits=8, group_size=None),
    "w8a8": QuantizationSettings.of("smoothquant"),
}


def save_float(kind: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A tiny model's folder, before anything is quantised."""
    sizes = {"intermediate_size": 64}
    if kind == "llama":
        torch.manual_seed(0)
        llama: Any = LlamaForCausalLM(LlamaConfig(**{**TINY, **sizes, "tie_word_embeddings": False}))
        llama.to(dtype).save_pretrained(folder)
    else:
        experts = {"num_experts": 3, "moe_intermediate_size": 32, "num_shared_experts": 1} if kind == "experts" else {}
        tiny_model(**sizes, **experts).to(dtype).save_pretrained(folder)
    return folder


def save_rounded(base: Path, settings: QuantizationSettings, folder: Path) -> Path:
    """The folder of the same model with its linear layers rounded; the head and the embedding stay."""
    tensors = rounded(apart(load_file(base / "model.safetensors")), settings)
    shutil.copytree(base, folder)
    save_file(stored(tensors, settings), folder / "model.safetensors", {"format": "pt"})
    fields = json.loads((base / "config.json").read_text())
    fields["quantization_config"] = config_fields(settings, ["lm_head"])
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def rounded(tensors: Mapping[str, Tensor], settings: QuantizationSettings) -> dict[str, Tensor | QuantizedWeight]:
    """The tensors, with plain rounding of all that ends in _proj.weight."""
    grid = settings.grid
    return {key: grid.rounded(x.float(), x.dtype) if key.endswith("_proj.weight") else x for key, x in tensors.items()}


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model of ours, with every expert apart."""
    found: dict[str, Tensor] = {}
    for key, x in tensors.items():
        stem, _, name = key.rpartition(".")
        if not stem.endswith(".experts"):
            found[key] = x
            continue
        for number, weight in enumerate(x):
            parts = {"down_proj": weight}
            if name == "gate_up_proj":
                parts = dict(zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True))
            found |= {f"{stem}.{number}.{part}.weight": value.contiguous() for part, value in parts.items()}
    return found


@torch.no_grad()
def faked(base: Path, settings: QuantizationSettings, folder: Path) -> Any:
    """The model that the quantised folder should be: of floats, and loaded without compressed-tensors."""
    tensors = rounded(apart(load_file(base / "model.safetensors")), settings)
    floats = {key: x if isinstance(x, Tensor) else x.dequantized() for key, x in tensors.items()}
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    if any(".experts." in key for key in floats):
        config = type(model.config).from_pretrained(folder)
        model = type(model)(config).to(model.dtype)
    model.load_state_dict(floats)
    for name, module in model.named_modules():
        if settings.rounds_activations and isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, args: (rounded_rows(args[0]),))
    return model.eval()
