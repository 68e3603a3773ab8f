"""Tells a pretraining config from a fine-tuning config, by the fields that only one of the two has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from stellarbyte.config.nodes import read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError

# Each maps a section to the fields in it that only this kind of config has; "" is the top of the file.
PRETRAINING = {
    "": ("mesh", "optimizer", "checkpoint", "distributed", "init_from", "seed"),
    "data": ("shards", "tokens_per_shard", "kind"),
    "training": ("batch_size", "dtype", "attention_kernel", "attention_block_size", "remat", "eval_batches"),
}
FINETUNING = {
    "": ("trainable", "early_stopping_patience", "quantization", "dtype", "distill"),
    "data": ("packing", "seed"),
    "training": (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "learning_rate"),
        *("lr_scheduler_type", "optim", "bf16", "fp16"),
    ),
}


def kind_of(path: Path) -> Literal["pretraining", "finetuning"]:
    """The kind of config in a YAML file: the kind with more fields in the file that the other kind lacks.

    Raises:
        UserError: the file cannot be read, or its fields do not decide between the two.
    """
    fields = plain(read_yaml(path))
    # Fine-tuning names a folder or a Hub id as its model, never a mapping.
    pretraining = _count(fields, PRETRAINING) + isinstance(fields.get("model"), dict)
    finetuning = _count(fields, FINETUNING)
    if pretraining != finetuning:
        return "pretraining" if pretraining > finetuning else "finetuning"
    if "hidden_size" in fields:
        raise UserError(f"{path} is the config of a model: name the config of a run, whose `model` it may be")
    raise UserError(
        f"{path} may be a pretraining or a fine-tuning config: give data.shards in the one, or "
        "training.per_device_train_batch_size in the other"
    )


def _count(fields: Mapping[str, Any], markers: Mapping[str, tuple[str, ...]]) -> int:
    sections = {name: fields.get(name) if name else fields for name in markers}
    return sum(
        name in section for key, section in sections.items() if isinstance(section, dict) for name in markers[key]
    )
