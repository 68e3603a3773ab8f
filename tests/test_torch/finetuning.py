"""A model's folder with chat data beside it, and runs on them, which the tests of fine-tuning share."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from stellarbyte.display import Display
from stellarbyte_torch.data.config import DataConfig, SourceConfig
from stellarbyte_torch.finetune.config import FinetuneConfig
from stellarbyte_torch.finetune.run import finetune

from .exported import export

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "naïve", "café", "春眠"]
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
# 40 training samples: 5 steps an epoch.
TRAINING: dict[str, Any] = {"max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "eval_steps": 3}


def model_folder(folder: Path, **changes: Any) -> Path:
    """An exported model, chat.jsonl of 50 conversations of unequal lengths in it."""
    export(folder, **{"max_position_embeddings": 128, **changes})
    words = random.Random(0)
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for number in range(50):
            said = {"role": "user", "content": f"{number} {' '.join(words.choices(WORDS, k=1 + number % 7))}"}
            answer = {"role": "assistant", "content": " ".join(words.choices(WORDS, k=1 + number % 3))}
            file.write(json.dumps({"messages": [said, answer]}) + "\n")
    return folder


def config(folder: Path, output_dir: Path, **changes: Any) -> FinetuneConfig:
    """A run on such a folder, LoRA by default; `training` is put over TRAINING."""
    data = DataConfig((SourceConfig(str(folder / "chat.jsonl")),), sequence_length=96, validation_fraction=0.2)
    data = replace(data, **changes.pop("data", {}))
    training = {**TRAINING, **changes.pop("training", {})}
    return FinetuneConfig(
        **{"model": str(folder), "output_dir": str(output_dir), "data": data, "lora": LORA, **changes},
        training=training,
    )


def run(config: FinetuneConfig) -> tuple[dict[str, Any], str]:
    """The summary of a run and what it printed."""
    output = io.StringIO()
    console = Console(file=output, highlight=False, markup=False, width=1000)
    summary = finetune(config, Display(console=console))
    return summary, output.getvalue()


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what the clock made of them."""
    records = [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]
    clocked = {"tokens_per_second", "step_seconds", "host_bytes"}
    return [{name: value for name, value in record.items() if name not in clocked} for record in records]
