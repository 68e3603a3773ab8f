"""Rewrites adapters that started with a part of the base's weights, so that they fit the unchanged base."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from stellarbyte.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from stellarbyte.files import write_json


def start_of(model: PeftModel, adapter_name: str) -> dict[str, torch.Tensor]:
    """Copies of an adapter's present A and B, by PEFT's keys."""
    state = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    return {key: value.detach().clone() for key, value in state.items() if ".lora_A." in key or ".lora_B." in key}


def write_for_plain_base(model: Any, folder: Path) -> None:
    """Rewrites the adapter in `folder`, which PEFT has saved for the base less s · B₀ A₀, for the whole base.

    The new adapter has twice the rank: W - s B₀ A₀ + s B A = W + s [B, -B₀] [A; A₀], as in PEFT's
    subtract_mutated_init, but with rank and alpha patterns and rsLoRA too. Nothing is done for an adapter that left its
    base alone, or for a model without adapters.
    """
    start = model.active_peft_config.start if isinstance(model, PeftModel) else None
    if start is None:
        return
    weights = load_file(folder / ADAPTER_WEIGHTS)
    for key, trained in weights.items():
        if match := re.search(r"\.lora_(?:embedding_)?([AB])(\.weight)?$", key):
            # Embeddings' adapters take nothing from the base whatever the config says; zeros give them the same rank.
            began = start.get(key, torch.zeros_like(trained)).to(trained)
            is_A = match[1] == "A"
            weights[key] = torch.cat([trained, began if is_A else -began], dim=0 if is_A else 1).contiguous()
    fields = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    growth = 2**0.5 if fields["use_rslora"] else 2  # the factor of alpha that keeps the scaling at twice the rank
    fields |= {
        "init_lora_weights": True,
        "r": 2 * fields["r"],
        "lora_alpha": growth * fields["lora_alpha"],
        "rank_pattern": {key: 2 * rank for key, rank in (fields["rank_pattern"] or {}).items()},
        "alpha_pattern": {key: growth * alpha for key, alpha in (fields["alpha_pattern"] or {}).items()},
    }
    save_file(weights, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / ADAPTER_CONFIG, fields, sort_keys=True)
