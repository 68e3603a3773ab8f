"""Makes the parts of a fine-tuning run from its config: the Trainer's arguments and the model that it trains."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import PreTrainedModel, TrainingArguments

from stellarbyte.errors import UserError
from stellarbyte_torch.finetune.config import FinetuneConfig
from stellarbyte_torch.finetune.training_values import complaint, without_effect
from stellarbyte_torch.lora.adapters import apply_lora_to_model
from stellarbyte_torch.lora.base import moves_base
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.targets import trained_whole

# Transformers' reporters -> the package that each needs.
_REPORTERS = {
    **{name: name for name in ("clearml", "codecarbon", "comet_ml", "dagshub", "dvclive", "mlflow", "neptune")},
    **{name: name for name in ("swanlab", "tensorboard", "trackio", "wandb")},
    **{"azure_ml": "azureml", "flyte": "flytekit"},
}

# Other fields -> the package that each needs.
_PACKAGES = {"deepspeed": "deepspeed", "use_liger_kernel": "liger-kernel"}
_OF_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")


def training_fields(config: FinetuneConfig) -> dict[str, Any]:
    """The fields for TrainingArguments: those in the config, and our defaults for the others."""
    given = config.training
    validates = config.data.validation_fraction > 0
    # Ten times a run: Transformers reads a value below 1 as a share of all steps.
    eval_steps = given.get("eval_steps", given.get("save_steps", 0.1))
    eval_strategy = given.get("eval_strategy", "steps" if validates else "no")
    save_strategy = given.get("save_strategy", "steps" if eval_strategy == "no" else eval_strategy)
    defaults = {
        # Adapters need larger steps than whole weights.
        "learning_rate": 2e-4 if config.lora is not None else 5e-5,
        "warmup_steps": 0.03,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # a loss that is not finite ends the run instead
        "eval_strategy": eval_strategy,
        "eval_steps": eval_steps,
        "save_strategy": save_strategy,
        "save_steps": eval_steps,
        "save_total_limit": 2,
        "load_best_model_at_end": eval_strategy == save_strategy != "no",
        "restore_callback_states_from_checkpoint": True,  # early stopping resumes its count
        "train_sampling_strategy": "random" if config.data.packing else "group_by_length",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "ddp_find_unused_parameters": False,  # every step uses all trained parameters, and the search takes time
    }
    return {**defaults, **given}


def training_arguments(config: FinetuneConfig, data_arguments: dict[str, Any]) -> TrainingArguments:
    """The Trainer's arguments.

    Raises:
        UserError: TrainingArguments refuses them, or this machine lacks something that they need.
    """
    # A deep copy: TrainingArguments fills in dicts such as fsdp_config, and a resumed run must have an equal config.
    fields = copy.deepcopy({**data_arguments, **training_fields(config)})
    for name, value in fields.items():
        problem = complaint(name, value)
        if problem is not None:
            raise UserError(f"training.{name} {problem}")
    if (problem := without_effect(fields)) is not None:
        raise UserError(f"training.{problem}")
    _check_is_here(fields)
    if config.early_stopping_patience is not None and not fields["load_best_model_at_end"]:
        raise UserError(
            "early_stopping_patience needs the best model to be kept: leave out training.load_best_model_at_end, or "
            "set training.eval_strategy and training.save_strategy to the same, steps or epoch"
        )
    if not torch.accelerator.is_available():
        fields["use_cpu"] = True  # otherwise TrainingArguments refuses bfloat16
    try:
        arguments = TrainingArguments(
            output_dir=str(Path(config.output_dir) / "checkpoints"),
            disable_tqdm=True,
            eval_on_start=fields["eval_strategy"] != "no",
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            **fields,
        )
    except (ValueError, TypeError, KeyError, AttributeError, ImportError, RuntimeError, OSError) as error:
        if fields.get("ddp_backend") and "process group" in str(error):
            raise UserError(
                "training.ddp_backend is for several processes: leave it out, or start the command by `torchrun "
                "--nproc_per_node N`"
            ) from error
        raise UserError(f"training: {' '.join(str(error).split())}") from error
    accelerator: Any = arguments.accelerator_config
    if accelerator.split_batches:
        raise UserError(
            "training.accelerator_config.split_batches is not for the config: training.per_device_train_batch_size is "
            "what each process takes"
        )
    if arguments.fsdp and arguments.world_size == 1:
        raise UserError("training.fsdp needs several processes: start the command by `torchrun --nproc_per_node N`")
    return arguments


def _check_is_here(fields: dict[str, Any]) -> None:
    """Raises UserError if the fields need something that is missing: a package, a file, worker processes, a GPU."""
    for reporter in [reporters] if isinstance(reporters := fields.get("report_to") or [], str) else reporters:
        if reporter in _REPORTERS and find_spec(_REPORTERS[reporter]) is None:
            raise UserError(f"training.report_to {reporter} needs a package: pip install {_REPORTERS[reporter]}")
    for name, package in _PACKAGES.items():
        if fields.get(name) and find_spec(package.replace("-", "_")) is None:
            raise UserError(f"training.{name} needs a package: pip install {package}")
    for name in ("deepspeed", "accelerator_config", "fsdp_config"):
        if isinstance(path := fields.get(name), str) and not Path(path).is_file():
            raise UserError(f"training.{name} {path} is not a file: name a JSON file, or write its fields here")
    for name in _OF_WORKERS if not fields.get("dataloader_num_workers") else ():
        if fields.get(name):
            raise UserError(f"training.{name} is for workers, and there are none: set training.dataloader_num_workers")
    if fields.get("fp16") and (fields.get("use_cpu") or not torch.cuda.is_available()):
        raise UserError("training.fp16 needs a CUDA GPU, and there is none here: set training.bf16, or neither")
    backend = fields.get("torch_compile_backend")
    if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends(exclude_tags=()))
        raise UserError(f"training.torch_compile_backend is {backend!r}, expected one of {known}")


def check_steps(arguments: TrainingArguments, rows: int) -> None:
    """Raises UserError if the run would end before its first step; `rows` is the size of the training set."""
    batch = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and rows < batch:
        raise UserError(
            f"training.dataloader_drop_last leaves out all {rows} training rows, as a batch on {arguments.world_size} "
            f"process(es) has {batch}: set it to false, or training.per_device_train_batch_size to "
            f"{max(1, rows // arguments.world_size)} or less"
        )


def lora_fields() -> set[str]:
    """The names of LoRAConfig's fields."""
    return set(LoRAConfig.__dataclass_fields__)


def _check_trains(lora: LoRAConfig) -> None:
    """Raises UserError for values that LoRAConfig allows but that an adapter cannot be trained with."""
    if lora.inference_mode:
        raise UserError("inference_mode is true, and then nothing trains: leave it out")
    if lora.task_type not in (None, "CAUSAL_LM"):
        raise UserError(f"task_type is {lora.task_type}, and this command trains causal language models: leave it out")
    start = lora.init_lora_weights
    if start in ("eva", "corda", "lora_ga"):
        raise UserError(
            f"init_lora_weights {start} starts from measurements of the data that PEFT makes beforehand, and this "
            "command makes none: choose true, gaussian, orthogonal, pissa or olora"
        )
    if moves_base(lora) and lora.use_dora:
        raise UserError(f"init_lora_weights {start} does not go with use_dora, whose norms are the base's: choose one")


def make_trainable(model: PreTrainedModel, config: FinetuneConfig) -> PreTrainedModel | PeftModel:
    """The model with adapters on it, or with all weights frozen except those that the config names.

    Raises:
        UserError: the model has no such module or layer, or its weights are in a dtype that cannot train.
    """
    if config.lora is not None:
        if config.quantization == "nf4":
            # The QLoRA recipe. Trainer itself switches gradient checkpointing on if the config asks for it.
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        try:
            lora = LoRAConfig(**config.lora)
            _check_trains(lora)
            return apply_lora_to_model(model, lora)
        except UserError as error:
            is_field = str(error).split()[0].partition("[")[0].strip(",") in lora_fields()
            raise UserError(f"lora{'.' if is_field else ': '}{error}") from error
    if model.dtype == torch.float16:
        raise UserError(
            f"model {config.model} is saved in float16, which cannot train: set dtype to float32 or bfloat16"
        )
    chosen = config.trainable
    if chosen is not None:
        fields = LoRAConfig(
            train_layers=chosen.layers,
            train_embeddings=chosen.embeddings,
            train_norms=chosen.norms,
            train_head=chosen.head,
        )
        try:
            names = trained_whole(fields, model)
        except UserError as error:  # it names LoRA's fields; the config calls them otherwise
            raise UserError(str(error).replace("train_", "trainable.")) from error
        model.requires_grad_(False)
        for name in names:
            for parameter in model.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(True)
    return model
