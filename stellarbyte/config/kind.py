"""Tells a pretraining config from a fine-tuning config, by the fields that only one of the two has."""

from pathlib import Path
from typing import Any, Literal

from stellarbyte.config.nodes import read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError

# Section -> the fields of it that a config of the other kind does not have; "" is the top of the file.
PRETRAINING = {
    "": ("mesh", "optimizer", "checkpoint", "distributed", "init_from", "seed"),
    "data": ("shards", "tokens_per_shard", "kind"),
    "training": ("batch_size", "dtype", "attention_kernel", "attention_block_size", "remat", "eval_batches"),
}
FINETUNING = {
    "": ("trainable", "early_stopping_patience", "quantization", "dtype"),
    "data": ("packing", "seed"),
    "training": (
        *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "learning_rate"),
        *("lr_scheduler_type", "optim", "bf16", "fp16"),
    ),
}


def kind_of(path: Path) -> Literal["pretraining", "finetuning"]:
    """Which of the two configs a YAML file is: the one of which it has more fields that the other lacks.

    Raises:
        UserError: the file cannot be read, or it has no such fields.
    """
    fields = plain(read_yaml(path))
    pretraining, finetuning = _count(fields, PRETRAINING), _count(fields, FINETUNING)
    if isinstance(fields.get("model"), dict):  # fine-tuning names a folder or a Hub id
        pretraining += 1
    if pretraining != finetuning:
        return "pretraining" if pretraining > finetuning else "finetuning"
    if "hidden_size" in fields:
        raise UserError(f"{path} is the config of a model: name the config of a run, whose `model` it may be")
    if "data" in fields and "model" in fields and not isinstance(fields["model"], dict | str | None):
        raise UserError(f"{path}: model is neither a path nor a mapping: name a model, and it is known what this is")
    raise UserError(
        f"{path} may be a pretraining or a fine-tuning config: give data.shards in the one, or "
        "training.per_device_train_batch_size in the other"
    )


def _count(fields: dict[str, Any], markers: dict[str, tuple[str, ...]]) -> int:
    sections = {name: fields if name == "" else fields.get(name) for name in markers}
    return sum(
        name in section for key in markers if isinstance(section := sections[key], dict) for name in markers[key]
    )
