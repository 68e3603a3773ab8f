"""How far each method of quantisation moves the logits of a small trained model, under each switch of architecture."""

import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convert.quantizing.folder import write_small_files
from stellarbyte.journal import Journal
from stellarbyte_torch import ByteConfig, ByteForCausalLM
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.quantization.block_files import BlockFiles
from stellarbyte_torch.quantization.compressed import config_fields
from stellarbyte_torch.quantization.quantize import quantize_blocks
from stellarbyte_torch.quantization.settings import Method, QuantizationSettings

_BASE: dict[str, Any] = {
    **{"vocab_size": 264, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1},
}
SWITCHES: dict[str, dict[str, Any]] = {
    "Llama-shaped": {"position_embedding": "rope"},
    "XPos": {},
    "learnt XPos": {"xpos_learnable": True},
    "parallel_residual": {"parallel_residual": True},
    "deepnorm": {"residual": "deepnorm"},
    "deepnorm, parallel": {"residual": "deepnorm", "parallel_residual": True},
    "layer_scale": {"layer_scale_init": 0.1},
    "qk_norm": {"qk_norm": True},
    "attention_bias": {"attention_bias": True},
    "sliding_window": {"sliding_window": 32},
    "one head of keys": {"num_key_value_heads": 1},
    "as many as queries": {"num_key_value_heads": 4},
    "pruned heads": {"pruned_heads": ((1,), (0, 1), ())},
    "uneven widths": {"intermediate_size": (128, 64, 96)},
    "tied": {"tie_word_embeddings": True},
    "experts": {"num_experts": 4, "moe_intermediate_size": 64},
    "shared experts": {
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "num_shared_experts": 1,
        "moe_intermediate_size": 64,
    },
}
# Name -> (the method, the fields of its settings, the plain rounding that it must not be worse than).
WAYS: dict[str, tuple[Method, dict[str, Any], str]] = {
    f"{method}, {bits} bits": (method, {"bits": bits, "group_size": size}, f"rtn, {bits} bits")
    for bits, size in ((8, None), (4, 16))
    for method in ("rtn", "gptq", "awq")
} | {name: (name, {}, "int8-dynamic") for name in ("int8-dynamic", "smoothquant")}
_STEPS, _BATCH, _LENGTH = 150, 16, 128
_CALIBRATION_ROWS, _HELD_OUT_ROWS = 64, 64


@dataclass(frozen=True)
class Text:
    """Rows of token ids [N, T] of three parts of the standard library's source, a token a byte."""

    train: Tensor
    calibration: Tensor
    held_out: Tensor


def read_text() -> Text:
    """The text that is on every machine."""
    counts = (_STEPS * _BATCH, _CALIBRATION_ROWS, _HELD_OUT_ROWS)
    content = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        content += path.read_bytes()
    # Of the whole, so that the parts are of one kind; ids below 3 are special.
    rows = (
        torch.frombuffer(content, dtype=torch.uint8)[: len(content) // _LENGTH * _LENGTH].view(-1, _LENGTH).long() + 3
    )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return Text(*rows[order[: sum(counts)]].split(counts))


def train(fields: dict[str, Any], text: Text, folder: Path) -> None:
    """Trains a model with these fields, and saves it in a folder."""
    torch.manual_seed(0)
    model = ByteForCausalLM(ByteConfig(**{**_BASE, **fields})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
    for step, ids in enumerate(text.train.split(_BATCH)):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min((step + 1) / 15, 1 - step / _STEPS)
        loss = model(ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)


def cost(source: Path, text: Text, name: str, work: Path) -> float:
    """The relative error of held-out logits of a folder's model after it was quantised in one of `WAYS`.

    It is the root of the mean squared difference over the root of the mean squared logit. What all logits of a position
    have in common is taken off before, since no probability depends on it. Transformers loads both models.
    """
    method, fields, _ = WAYS[name]
    settings = QuantizationSettings.of(method, **fields)
    folder, scratch = work / "quantised", work / "scratch"
    for each in (folder, scratch):
        each.mkdir(parents=True)
    files = BlockFiles(folder, settings, Journal(folder, {}))
    for block in quantize_blocks(source, settings, text.calibration, scratch):
        files.add(block)
    config: Any = ByteConfig.from_pretrained(source).to_dict()
    write_small_files(source, folder, config, config_fields(settings, files.finish().left_out))
    expected, found = logits(source, text.held_out), logits(folder, text.held_out)
    return ((found - expected).norm() / expected.norm()).item()


@torch.no_grad()
def logits(folder: Path, rows: Tensor) -> Tensor:
    """What the model in a folder says of rows, around 0 at each position."""
    model: Any = load_model(folder, "cpu")
    found = model(rows, use_cache=False).logits.double()
    return found - found.mean(-1, keepdim=True)
