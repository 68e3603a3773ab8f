"""The config of a fine-tuning run, read from a YAML file."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import TrainingArguments

from stellarbyte.config.build import build, field_values
from stellarbyte.config.nodes import Node, read_yaml
from stellarbyte.config.overrides import override, parse_overrides
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError, shown
from stellarbyte.files import check_path
from stellarbyte_torch.data.config import DataConfig, refuse_old_names, with_new_names
from stellarbyte_torch.finetune.distillation import DistillConfig
from stellarbyte_torch.finetune.training_values import DEFAULTS, MOST, OURS, complaint
from stellarbyte_torch.lora.config import LoRAConfig


@dataclass(frozen=True)
class TrainableConfig:
    """What trains when there is no LoRA and not everything trains; one field at least must be given."""

    layers: str | tuple[int, ...] | None = None
    """The layers that train, as "4-7" (both ends included) or [4, 5]; null for none."""

    embeddings: bool = False
    """Whether the input embeddings train."""

    norms: bool = False
    """Whether the norms of all layers, and the last one, train."""

    head: bool = False
    """Whether the output head trains."""

    def __post_init__(self) -> None:
        if not (self.layers or self.embeddings or self.norms or self.head):
            raise UserError("layers, embeddings, norms, head: name one at least, or leave trainable out to train all")


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run."""

    model: str
    """The model to start from: a folder or a Hub id of any causal language model of Transformers."""

    output_dir: str
    """The folder of the run: config, metrics, checkpoints and result. If it holds a run already, that run goes on."""

    data: DataConfig
    """What is trained on: sources, the tokenizer and its chat template, length and packing of samples."""

    lora: dict[str, Any] | None = field(default=None, metadata={"section": LoRAConfig})
    """Adapters that are trained instead of the weights: every field of PEFT's LoraConfig, and ours; null to train the
    weights themselves.
    """

    trainable: TrainableConfig | None = None
    """The part of the weights that trains, without lora; null for all of them."""

    distill: DistillConfig | None = None
    """For a model that also learns from another, such as the one that it was pruned from; null for the data alone."""

    training: dict[str, Any] = field(
        default_factory=dict, metadata={"section": TrainingArguments, "defaults": DEFAULTS, "refused": OURS}
    )
    """How the run trains: the fields of Transformers' TrainingArguments, except for those that the command sets itself.
    """

    early_stopping_patience: int | None = None
    """Number of validations in a row without a lower loss after which the run ends; null never ends it early."""

    quantization: Literal["none", "int8", "nf4"] = "none"
    """How the weights below lora are quantised: int8 (torchao, weights only), nf4 (bitsandbytes, on CUDA), or none."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type in which the weights are loaded; auto is the type in which they were saved."""

    def __post_init__(self) -> None:
        for name in ("model", "output_dir"):
            check_path(getattr(self, name), name)
        if self.lora is not None and self.trainable is not None:
            raise UserError(
                "trainable is for runs without lora, whose own train_layers, train_embeddings, train_norms and "
                "train_head do the same: leave one of the two out"
            )
        if self.early_stopping_patience is not None:
            if not 1 <= self.early_stopping_patience <= MOST:
                raise UserError(
                    f"early_stopping_patience is {self.early_stopping_patience}: choose 1 or more, at most {MOST:,}, "
                    "or null"
                )
            if self.data.validation_fraction == 0:
                raise UserError(
                    "early_stopping_patience needs validation samples: set data.validation_fraction above 0"
                )
        if self.distill is not None:
            self._check_distillation(self.training or {})
        if self.quantization != "none" and self.lora is None:
            raise UserError(
                f"quantization {self.quantization} is for a base under lora, as rounded weights cannot train: "
                "add lora, or set quantization to none"
            )
        if self.dtype == "float16" and self.lora is None:
            raise UserError(
                "dtype float16 cannot train, as its updates vanish: set float32 with training.fp16, or bfloat16"
            )

    @staticmethod
    def _check_distillation(training: dict[str, Any]) -> None:
        shares = "shares out each model that is loaded, and distill's teacher is whole on each device"
        smooths = "smooths labels, and with distill the teacher does"
        for name, why in {"label_smoothing_factor": smooths, "deepspeed": shares, "fsdp": shares}.items():
            if training.get(name):
                raise UserError(f"training.{name} {shown(training[name])} {why}: leave one of the two out")


def load_finetune_config(path: Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """The config in a YAML file, with command-line overrides (`--training.max_steps 10`) put over it.

    Raises:
        UserError: a field is wrong; it names file:line or the override, the field, its value and what was expected.
    """
    root = read_yaml(path)
    for name, value in parse_overrides(overrides):
        root = override(root, name, value)
    if "data" in root.value:
        refuse_old_names(root.value["data"])
    return _config(root)


def load_saved_config(path: Path) -> FinetuneConfig:
    """The config in a run's folder, which an earlier version may have written. Raises UserError if it is damaged."""
    root = read_yaml(path)
    if "data" in root.value:
        root = dataclasses.replace(root, value={**root.value, "data": with_new_names(root.value["data"])})
    return _config(root)


def _config(root: Node) -> FinetuneConfig:
    config = build(FinetuneConfig, root)
    lora = root.value.get("lora")
    training = root.value.get("training")
    return dataclasses.replace(
        config,
        lora=None if lora is None or lora.value is None else _lora_fields(lora),
        training={} if training is None or training.value is None else _training_fields(training),
    )


def _lora_fields(node: Node) -> dict[str, Any]:
    build(LoRAConfig, node, "lora")  # raises if a value is impossible for every adapter
    return plain(field_values(LoRAConfig, node, "lora"))


def _training_fields(node: Node) -> dict[str, Any]:
    for name, value in node.value.items() if isinstance(node.value, dict) else ():
        if name in OURS:
            raise UserError(f"{value.where}: training.{name} is not for the config: {OURS[name]}")
    given, flags = node, {}
    if isinstance(node.value, dict) and "fsdp" in node.value and isinstance(node.value["fsdp"].value, bool):
        # Transformers declares it as text, but accepts true and false as well.
        flags = {"fsdp": node.value["fsdp"].value}
        given = dataclasses.replace(node, value={k: v for k, v in node.value.items() if k not in flags})
    fields: dict[str, Any] = {**plain(field_values(TrainingArguments, given, "training")), **flags}
    for name, value in fields.items():
        problem = complaint(name, value)
        if problem is not None:
            raise UserError(f"{node.value[name].where}: training.{name} {problem}")
    return fields
