"""Parameters and FLOPs of a forward pass by `stellarbyte report`, by hand, and by other counters, as Markdown tables.

Run it as `python -m tests.counters_table`. torchinfo and calflops are no extras of ours: where they are not installed,
their columns say so. FLOPs are in units of the report's own, which counts the visible pairs of attention alone.
"""

import contextlib
import importlib
import io
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from stellarbyte.report.find import find_subject
from stellarbyte.report.flops import forward_work
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
from stellarbyte_torch import ByteConfig, ByteForCausalLM

TOKENS = 1024
SIZES = {
    **{"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": TOKENS},
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 704}
OURS: dict[str, dict[str, Any]] = {
    "ours, tied, XPos": {"tie_word_embeddings": True},
    "ours, window 128": {"sliding_window": 128},
    "ours, 2 of 8 experts": EXPERTS,
}
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "GPT-2, tied": ("gpt2", {"n_embd": 512, "n_layer": 4, "n_head": 8, "vocab_size": 4096, "n_positions": TOKENS}),
    "Qwen3-MoE, 2 of 8": ("qwen3_moe", EXPERTS | {"head_dim": 64}),
}


def by_hand(model: PreTrainedModel) -> float:
    """FLOPs of TOKENS tokens: 2 a number of every matrix that works on a token, 4 a visible pair and channel."""
    config, flops = model.config, 0.0
    embeddings = {id(model.get_input_embeddings().weight)}
    head = model.get_output_embeddings().weight
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or id(parameter) in embeddings or "wpe" in name or parameter is head:
            continue
        share = config.num_experts_per_tok / parameter.shape[0] if parameter.ndim == 3 else 1
        flops += 2 * TOKENS * share * parameter.numel()
    window = getattr(config, "sliding_window", None) or TOKENS
    pairs = sum(min(token + 1, window) for token in range(TOKENS))
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    return flops + 2 * TOKENS * head.numel() + 4 * layers * heads * channels * pairs


def by_torch(model: PreTrainedModel, attention: str) -> float:
    model.set_attn_implementation(attention)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros((1, TOKENS), dtype=torch.long), use_cache=False)
    return float(counter.get_total_flops())


def by_torchinfo(model: PreTrainedModel) -> tuple[int, float]:
    """(parameters, two for each of its multiply-adds)."""
    summary = importlib.import_module("torchinfo").summary(
        model, input_data=torch.zeros((1, TOKENS), dtype=torch.long), verbose=0
    )
    return summary.total_params, 2.0 * summary.total_mult_adds


def by_calflops(model: PreTrainedModel) -> tuple[int, float]:
    """(parameters, FLOPs)."""
    calculate = importlib.import_module("calflops").calculate_flops
    ids = torch.zeros((1, TOKENS), dtype=torch.long)
    with contextlib.redirect_stdout(io.StringIO()):
        flops, _, parameters = calculate(
            model, kwargs={"input_ids": ids}, print_results=False, print_detailed=False, output_as_string=False
        )
    return int(parameters), float(flops)


def tried(count: Callable[[], Any]) -> Any:
    """What a counter says, or why it says nothing."""
    try:
        return count()
    except ModuleNotFoundError as error:
        return f"no {error.name}"
    except Exception as error:  # noqa: BLE001 - whatever a counter fails with is told
        return type(error).__name__


def shown(value: Any, unit: float) -> str:
    """A counter's FLOPs over the report's."""
    return value if isinstance(value, str) else f"{value / unit:.4f}"


def main() -> None:
    """Prints both tables."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    models: dict[str, PreTrainedModel] = {
        name: ByteForCausalLM(ByteConfig(**SIZES | fields)) for name, fields in OURS.items()
    }
    for name, (family, fields) in STOCK.items():
        config = AutoConfig.for_model(family, **(fields if family == "gpt2" else SIZES | fields))
        models[name] = AutoModelForCausalLM.from_config(config)
    parameters, flops = [], []
    for name, model in models.items():
        model.eval()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            subject = find_subject(Path(folder))
        work = forward_work(structure_of(subject), TOKENS)
        unit = TOKENS * work.total
        info, cal = tried(lambda: by_torchinfo(model)), tried(lambda: by_calflops(model))  # noqa: B023 - called at once
        numel = sum(parameter.numel() for parameter in model.parameters())
        seen = [info if isinstance(info, str) else f"{info[0]:,}", cal if isinstance(cal, str) else f"{cal[0]:,}"]
        parameters.append(f"| {name} | {count_parameters(subject).total:,} | {numel:,} | {' | '.join(seen)} |")
        counted = [
            by_hand(model),
            TOKENS * forward_work(structure_of(subject), TOKENS, every_pair=True).total,
            tried(lambda: by_torch(model, "sdpa")),  # noqa: B023
            tried(lambda: by_torch(model, "eager")),  # noqa: B023
            *(found if isinstance(found, str) else found[1] for found in (info, cal)),
        ]
        flops.append(f"| {name} | {unit / 1e9:.3f} | {' | '.join(shown(value, unit) for value in counted)} |")
    print("| parameters | report | sum(p.numel()) | torchinfo | calflops |\n| --- | --- | --- | --- | --- |")
    print("\n".join(parameters))
    print("\n| FLOPs | report, GFLOPs | by hand | every pair | torch, sdpa | torch, eager | torchinfo | calflops |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    print("\n".join(flops))


if __name__ == "__main__":
    main()
