"""Folders of models whose files have headers and no bytes on the disk behind them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellarbyte.safetensors_header import ELEMENT_BYTES

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def sparse_file(path: Path, tensors: Tensors) -> Path:
    """A safetensors file of these tensors, name -> (dtype, shape); all numbers are 0, and take no space."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * ELEMENT_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def folder(path: Path, fields: Mapping[str, Any], tensors: Tensors, files: int = 1) -> Path:
    """A Hugging Face folder, its tensors spread over so many files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(fields))
    if files == 1:
        sparse_file(path / "model.safetensors", tensors)
        return path
    names = list(tensors)
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors"
        mine = names[number::files]
        sparse_file(path / file, {name: tensors[name] for name in mine})
        weight_map |= dict.fromkeys(mine, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


LLAMA = {
    **{"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "rms_norm_eps": 1e-5},
}


def llama(fields: Mapping[str, Any] = LLAMA, dtype: str = "BF16", tied: bool = False) -> dict[str, Any]:
    """The tensors of a Llama."""
    D, F, V = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    H = D // fields["num_attention_heads"]
    KV = fields["num_key_value_heads"] * H
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(fields["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            f"{prefix}self_attn.q_proj.weight": (D, D),
            f"{prefix}self_attn.k_proj.weight": (KV, D),
            f"{prefix}self_attn.v_proj.weight": (KV, D),
            f"{prefix}self_attn.o_proj.weight": (D, D),
            f"{prefix}mlp.gate_proj.weight": (F, D),
            f"{prefix}mlp.up_proj.weight": (F, D),
            f"{prefix}mlp.down_proj.weight": (D, F),
            f"{prefix}input_layernorm.weight": (D,),
            f"{prefix}post_attention_layernorm.weight": (D,),
        }
    shapes["model.norm.weight"] = (D,)
    if not tied:
        shapes["lm_head.weight"] = (V, D)
    return {name: (dtype, shape) for name, shape in shapes.items()}
