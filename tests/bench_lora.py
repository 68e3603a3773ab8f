"""LoRA fine-tuning against PEFT on Hugging Face Llama of the same shape, and what several adapters cost.

Run it as `python -m tests.bench_lora`.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench import BATCH, FEED_FORWARD, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, Work, _ask, _rate, _start

LENGTH, STEPS, RUN_STEPS = 256, 4, 10
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "all-linear"}
ADAPTERS, SWAPS = 8, 20


def main() -> None:
    """Print tokens/s and peak memory of both sides, then the figures of a manager of eight adapters."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measured turns of each side (default 5)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: dict[str, Any] = {}
    works = {"step": (_our_step, _peft_step), "run": (_our_run, _peft_run)}
    for task, (ours, theirs) in works.items():
        # Processes of their own for each task, so that peaks of memory are of that task alone.
        sides = {"stellarbyte": _start(context, ours), "peft": _start(context, theirs)}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(options.rounds + 1):
            for name, side in sides.items():
                rate = _ask(side, task)
                if turn:  # the first one warms up
                    rates[name].append(rate)
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        results[task] = {
            **{name: statistics.median(values) for name, values in rates.items()},
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "peak_mib": {name: _ask(side, "peak") for name, side in sides.items()},
        }
        for side in sides.values():
            side.send(None)
    results["adapters"] = _adapters()
    print(json.dumps(results) if options.json else _table(results))


def _table(results: dict[str, Any]) -> str:
    lines = [f"{'tokens/s, median':<18}{'stellarbyte':>12}{'peft':>10}{'ratio':>8}   (min to max)      peak MiB"]
    for task in ("step", "run"):
        row = results[task]
        peaks = " / ".join(f"{peak:.0f}" for peak in row["peak_mib"].values())
        lines.append(
            f"{task:<18}{row['stellarbyte']:>12.1f}{row['peft']:>10.1f}{row['ratio']:>8.2f}"
            f"   ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})   {peaks}"
        )
    row = results["adapters"]
    lines.append(
        f"125m: a swap takes {row['swap_ms']:.1f} ms (median of {SWAPS}); weights {row['base_mib']:.0f} MiB, with "
        f"{ADAPTERS} adapters {row['with_adapters_mib']:.0f} MiB"
    )
    return "\n".join(lines)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _shape(**more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        **more,
    }


def _our_model() -> Any:
    from stellarbyte_torch import ByteConfig, ByteModel

    return ByteModel(ByteConfig(**_shape(position_embedding="rope")))


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_shape(pad_token_id=2)))


def _with_peft(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))


def _our_step() -> dict[str, Work]:
    from stellarbyte_torch import LoRAConfig
    from stellarbyte_torch.lora import apply_lora_to_model

    return _step(apply_lora_to_model(_our_model(), LoRAConfig(**LORA)))


def _peft_step() -> dict[str, Work]:
    return _step(_with_peft(_llama()))


def _step(model: Any) -> dict[str, Work]:
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4)
    rows = torch.randint(3, VOCAB, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(rows)

    def train() -> None:
        model.train()
        for _ in range(STEPS):
            model(rows, attention_mask=mask, labels=rows, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return {"step": lambda: _rate(STEPS * BATCH * LENGTH, train), "peak": _peak}


def _run_data(folder: Path) -> tuple[Path, Path]:
    """A folder with a tokenizer in it, and conversations."""
    from transformers.utils import logging

    from stellarbyte_jax.data.docstring_chat import write_stdlib_chat
    from tests.test_torch.exported import export

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    exported, chat = export(folder / "tokenizer"), folder / "chat.jsonl"
    write_stdlib_chat(folder / "all.jsonl")
    with (folder / "all.jsonl").open(encoding="utf-8") as lines:
        chat.write_text("".join(line for _, line in zip(range(300), lines, strict=False)), encoding="utf-8")
    return exported, chat


def _our_run() -> dict[str, Work]:
    from transformers import AutoTokenizer

    from stellarbyte.display import Display
    from stellarbyte_torch.data.config import DataConfig, SourceConfig
    from stellarbyte_torch.finetune.config import FinetuneConfig
    from stellarbyte_torch.finetune.run import finetune

    folder = Path(tempfile.mkdtemp())
    tokenizer, chat = _run_data(folder)
    _our_model().save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "model")
    number = 0

    def run() -> float:
        nonlocal number
        number += 1
        config = FinetuneConfig(
            model=str(folder / "model"),
            output_dir=str(folder / f"run{number}"),
            data=DataConfig((SourceConfig(str(chat)),), sequence_length=LENGTH, packing=True, validation_fraction=0.0),
            lora=LORA,
            training={"max_steps": RUN_STEPS, "per_device_train_batch_size": BATCH, "save_strategy": "no"},
        )
        return float(finetune(config, Display(quiet=True))["tokens_per_second"])

    return {"run": run, "peak": _peak}


def _peft_run() -> dict[str, Work]:
    from transformers import AutoTokenizer, Trainer, TrainingArguments

    from stellarbyte_torch.data.config import DataConfig, SourceConfig
    from stellarbyte_torch.data.samples import prepare_data

    folder = Path(tempfile.mkdtemp())
    tokenizer, chat = _run_data(folder)
    config = DataConfig((SourceConfig(str(chat)),), sequence_length=LENGTH, packing=True, validation_fraction=0.0)
    prepared = prepare_data(config, AutoTokenizer.from_pretrained(tokenizer))
    # Ours counts real tokens: what fills rows up does not count here either.
    full = prepared.samples.tokens / (len(prepared.train) * LENGTH)  # type: ignore[arg-type]
    _llama().save_pretrained(folder / "model")

    def run() -> float:
        from transformers import LlamaForCausalLM

        model = _with_peft(LlamaForCausalLM.from_pretrained(folder / "model"))
        arguments = TrainingArguments(
            output_dir=str(folder / "run"),
            max_steps=RUN_STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-4,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **{**prepared.trainer_arguments, "remove_unused_columns": False},
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=prepared.train, data_collator=prepared.collator)
        seconds = trainer.train().metrics["train_runtime"]
        return float(full * RUN_STEPS * BATCH * LENGTH / seconds)

    return {"run": run, "peak": _peak}


def _adapters() -> dict[str, float]:
    import torch

    from stellarbyte_jax.config_file import load_model_config
    from stellarbyte_torch import ByteConfig, ByteModel, LoRAConfig
    from stellarbyte_torch.lora import LoRAManager

    fields = vars(load_model_config(Path(__file__).parents[1] / "configs" / "model" / "125m.yaml"))
    model = ByteModel(ByteConfig(**fields))
    base = _mib(model)
    manager = LoRAManager(model)
    names = [f"adapter{number}" for number in range(ADAPTERS)]
    for name in names:
        manager.register(name, LoRAConfig(**LORA))
    swaps = []
    with torch.no_grad():
        for number in range(SWAPS):
            start = time.perf_counter()
            manager.activate(names[number % ADAPTERS])
            swaps.append(time.perf_counter() - start)
    return {
        "swap_ms": statistics.median(swaps) * 1000,
        "base_mib": base,
        "with_adapters_mib": _mib(manager.model),
    }


def _mib(model: Any) -> float:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / 2**20


if __name__ == "__main__":
    main()
