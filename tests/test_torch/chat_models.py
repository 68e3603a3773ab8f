"""Chat models with adapters, in folders, that the tests of chat share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_torch.lora import LoRAConfig, LoRAManager

from .lora_models import fill, llama
from .tiny import tiny_model

# Bytes and the special tokens, no merges: a text's tokens are its own however it came about.
VOCABULARY = 259
QUESTIONS = ("The quick café?", "Lazy dog!", "And the fox")


def chat_folder(folder: Path, kind: str = "byte", **changes: Any) -> Path:
    """A model that has an opinion on letters alone, so that its answers can be read and typed again."""
    train_tokenizer(["abc"], VOCABULARY, folder)
    make = {"byte": tiny_model, "llama": llama}[kind]
    changes = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "eos_token_id": 1, **changes}
    model: PreTrainedModel = make(**changes)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = [token for token in range(VOCABULARY) if tokenizer.decode([token]).isascii()]
    letters = [token for token in letters if tokenizer.decode([token]).isalpha()]
    with torch.no_grad():
        head = model.lm_head.weight
        others = torch.ones(VOCABULARY, dtype=torch.bool)
        others[letters] = False
        head[others] = 0.0  # a score of 0, which the best of 52 letters all but always beats
    model.save_pretrained(folder)
    return folder


def adapter_folders(base: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """An adapter of each name for the model in `base`, no two alike."""
    return [
        adapter_folder(AutoModelForCausalLM.from_pretrained(base), folder / name, seed)
        for seed, name in enumerate(names)
    ]


def adapter_folder(model: PreTrainedModel, folder: Path, seed: int = 3) -> Path:
    """An adapter that changes what the model says; the model itself is not to be used any more."""
    manager = LoRAManager(model)
    manager.register("new", LoRAConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
    fill(manager.model, "new", seed)
    manager.save("new", folder)
    return folder
