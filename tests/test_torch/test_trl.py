"""TRL's SFTTrainer: the same batches as ours, and our models in it as any other; skipped where TRL is not installed."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoTokenizer

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_torch.data.config import DataConfig, SourceConfig
from stellarbyte_torch.data.samples import prepare_data

from .exported import export
from .tiny import tiny_model

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def conversations() -> list[list[dict[str, str]]]:
    texts = ["The quick", "brown fox\n", " jumps 🚀", "春眠不觉晓", "“Ça va?”", "naïve café", "\n\nlazy", "dog."]
    return [
        [
            {"role": ("user", "assistant")[turn % 2], "content": " ".join(texts[(number * 3 + turn) % 8 :][: 1 + turn])}
            for turn in range(2 + 2 * (number % 3))
        ]
        for number in range(24)
    ]


@pytest.mark.parametrize("packing", [False, True])
def test_the_same_batches_as_trl(packing: bool, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path / "export"))
    records = [{"messages": messages} for messages in conversations()]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    trainer: Any = trl.SFTTrainer(
        model=tiny_model(vocab_size=320, max_position_embeddings=256),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            assistant_only_loss=True,
            max_length=256,
            packing=packing,
            padding_free=packing,
            eval_packing=packing,
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=tokenizer,
    )
    theirs = [trainer.train_dataset[index] for index in range(len(trainer.train_dataset))]
    batch = trainer.data_collator(theirs)

    sources = (SourceConfig(str(tmp_path / "x.jsonl")),)
    config = DataConfig(sources, sequence_length=256, packing=packing, validation_fraction=0.0)
    prepared = prepare_data(config, tokenizer)
    ours = prepared.collator([prepared.train[index] for index in range(len(prepared.train))])
    if packing:  # whose rows hold other samples, in one long row: compare sample by sample
        assert documents(ours) == documents(batch)
        assert len(documents(ours)) == len(records)
        return
    length = batch["input_ids"].shape[1]
    seen = batch["attention_mask"].bool()
    assert (ours["attention_mask"][:, :length] == batch["attention_mask"]).all()
    assert (ours["input_ids"][:, :length][seen] == batch["input_ids"][seen]).all()
    assert (ours["labels"][:, :length] == batch["labels"]).all()
    assert not ours["attention_mask"][:, length:].any()


@pytest.mark.parametrize("packing", [False, True])
def test_sft_trainer_trains_an_exported_model_by_its_path(packing: bool, tmp_path: Path) -> None:
    """Nothing of ours but the folder: the model by name, a peft_config, and what PEFT then saves loads again."""
    folder = export(tmp_path / "export")
    trainer: Any = trl.SFTTrainer(
        model=str(folder),
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            assistant_only_loss=True,
            max_length=64,
            packing=packing,
            padding_free=packing,
            max_steps=8,
            per_device_train_batch_size=4,
            learning_rate=3e-2,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in conversations()]),
        peft_config=LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    assert losses[-1] < 0.9 * losses[0]

    trainer.save_model(str(tmp_path / "adapter"))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        loaded: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
        assert torch.equal(loaded.eval()(ids).logits, expected)


def documents(batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each packed document that is trained on, sorted."""
    found = []
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = [*(positions == 0).nonzero().flatten().tolist(), len(ids)]
        found += [
            (ids[start:stop].tolist(), labels[start:stop].tolist())
            for start, stop in pairwise(starts)
            if (labels[start:stop] != IGNORED_LABEL).any()
        ]
    return sorted(found)
