"""Finds impossible values of Transformers' TrainingArguments that Transformers itself notices late or never."""

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.training_args import TrainingArguments, trainer_log_levels

from stellarbyte import float32

# Fields that the command sets itself -> what to write instead, or why.
OURS = {
    "output_dir": "give output_dir at the top of the file",
    "logging_dir": "TensorBoard's files go into output_dir/checkpoints",
    "resume_from_checkpoint": "the same command goes on from the newest checkpoint of output_dir",
    "eval_on_start": "the validation loss before training is measured in any case",
    "metric_for_best_model": "the best model is the one of the lowest validation loss",
    "greater_is_better": "the best model is the one of the lowest validation loss",
    "enable_jit_checkpoint": "Ctrl-C and SIGTERM write a checkpoint in any case",
    "save_only_model": "a checkpoint without the optimizer could not go on",
    "disable_tqdm": "the progress display is ours",
    "remove_unused_columns": "every field of a batch is for the model",
    "include_num_input_tokens_seen": "tokens are counted in any case, padding left out",
    "parallelism_config": "give training.fsdp or training.deepspeed",
    "push_to_hub": "upload the folder when the run has ended",
    "hub_token": "a config file is no place for a secret",
    "do_train": "leave it out",
    "do_eval": "leave it out",
    "do_predict": "leave it out",
    "label_names": "the labels are those of the data",
    "local_rank": "torchrun tells each process which one it is",
}

# Fields for which the command has another default than Transformers -> that default in words; setup.training_fields
# sets them.
DEFAULTS = {
    "learning_rate": "2e-4 with lora, 5e-5 without",
    "warmup_steps": "0.03",
    "logging_steps": "1",
    "logging_nan_inf_filter": "false",
    "eval_strategy": "steps, or no where data.validation_fraction is 0",
    "eval_steps": "that of save_steps, or 0.1, which is ten times a run",
    "save_strategy": "that of eval_strategy, or steps where that is no",
    "save_steps": "that of eval_steps",
    "save_total_limit": "2",
    "load_best_model_at_end": "true where eval_strategy and save_strategy are one, and not no",
    "restore_callback_states_from_checkpoint": "true",
    "train_sampling_strategy": "group_by_length, or random with data.packing",
    "dataloader_pin_memory": "true with CUDA, false without",
    "ddp_find_unused_parameters": "false",
}

MOST = 10**9
_AT_LEAST_1 = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "save_total_limit"),
    *("eval_accumulation_steps", "torch_empty_cache_steps", "ddp_bucket_cap_mb", "ddp_timeout"),
)
_AT_LEAST_0 = ("warmup_steps", "weight_decay", "max_grad_norm", "neftune_noise_alpha", "eval_delay")
_MORE_THAN_0 = ("num_train_epochs", "logging_steps", "eval_steps", "save_steps")
_BELOW_1 = ("adam_beta1", "adam_beta2", "label_smoothing_factor")
_MAPPINGS = ("lr_scheduler_kwargs", "liger_kernel_config")
# The arguments of torch.utils.checkpoint that a YAML file can express.
_CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "debug", "early_stop")
_CHOICES: dict[str, tuple[str, ...]] = {
    "report_to": ("none", "all", *INTEGRATION_TO_CALLBACK),
    "log_level": tuple(trainer_log_levels),
    "log_level_replica": tuple(trainer_log_levels),
    "train_sampling_strategy": ("random", "sequential", "group_by_length", "batch_rebalance"),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "ddp_backend": ("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
_OPTIM_ARGS = re.compile(r"\s*\w+\s*=[^,=]+(,\s*\w+\s*=[^,=]+)*")
# Optimizers that ignore unknown optim_args without a word -> the ones that they read.
_READ_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adafactor", "lomo", "adalomo"), ()),
    "sgd": ("momentum", "dampening", "weight_decay", "nesterov"),
    "adagrad": ("lr_decay", "weight_decay", "eps"),
    "rmsprop": ("momentum", "alpha", "eps", "weight_decay", "centered"),
}

_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **{name: (lambda value: 1 <= value <= MOST, f"choose 1 or more, at most {MOST:,}") for name in _AT_LEAST_1},
    **{name: (lambda value: 0 <= value <= MOST, f"choose 0 or more, at most {MOST:,}") for name in _AT_LEAST_0},
    **{name: (lambda value: 0 < value <= MOST, f"choose more than 0, at most {MOST:,}") for name in _MORE_THAN_0},
    "learning_rate": (lambda value: value > 0 and float32.holds(value), "choose more than 0, as float32 holds it"),
    "adam_epsilon": (lambda value: value >= 0 and float32.holds(value), "choose 0 or more, as float32 holds it"),
    # Each worker is a process, and prepares dataloader_prefetch_factor batches ahead.
    "dataloader_num_workers": (lambda value: 0 <= value <= 1024, "choose 0 or more, at most 1024"),
    "dataloader_prefetch_factor": (lambda value: 1 <= value <= 1024, "choose 1 or more, at most 1024"),
    **{name: (lambda value: 0 <= value < 1, "choose at least 0 and less than 1") for name in _BELOW_1},
    # numpy takes no larger seed.
    **{name: (lambda value: 0 <= value < 2**32, "choose 0 to 4294967295") for name in ("seed", "data_seed")},
    **{name: (lambda value: isinstance(value, Mapping), "write a mapping of its arguments") for name in _MAPPINGS},
    **{
        f"{kind}_checkpointing_kwargs": (
            lambda value: (
                isinstance(value, Mapping)
                and set(value) <= set(_CHECKPOINTING)
                and all(isinstance(switch, bool) for switch in value.values())
            ),
            f"write a mapping of {', '.join(_CHECKPOINTING)}, each true or false",
        )
        for kind in ("activation", "gradient")
    },
    "max_steps": (
        lambda value: value == -1 or 1 <= value <= MOST,
        f"choose 1 or more, at most {MOST:,}, or leave it out to count epochs",
    ),
    "optim_args": (lambda value: _OPTIM_ARGS.fullmatch(str(value)) is not None, "write it as name=value,name=value"),
}


def complaint(name: str, value: Any) -> str | None:
    """What is wrong with a field's value, as "is …: …", or None if no fault can be seen here."""
    if value is None:
        return None
    if name in _CHOICES:
        for word in value if isinstance(value, list) else [value]:
            if word not in _CHOICES[name]:
                near = difflib.get_close_matches(str(word), _CHOICES[name], n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                return f"is {word!r}, expected one of {', '.join(_CHOICES[name])}{hint}"
    if name not in _RULES:
        return None
    is_possible, advice = _RULES[name]
    return None if is_possible(value) else f"is {value}: {advice}"


def without_effect(fields: Mapping[str, Any]) -> str | None:
    """A sentence about a field that has no effect beside the others, beginning with its name; None if there is none."""
    optim = fields.get("optim") or TrainingArguments.default_optim
    for key in re.findall(r"(\w+)\s*=", fields.get("optim_args") or ""):
        if optim in _READ_BY and key not in _READ_BY[optim]:
            known = f"only {', '.join(_READ_BY[optim])}" if _READ_BY[optim] else "none: set adam_beta1 and the like"
            return f"optim_args has {key!r}, which optim {optim} does not read, {known}; leave it out"
    switches = ("activation_checkpointing", "gradient_checkpointing")
    for switch in switches:
        if fields.get(f"{switch}_kwargs") and not any(map(fields.get, switches)):
            return f"{switch}_kwargs is for {switch}, which is off: set that to true, or leave this out"
    return None
