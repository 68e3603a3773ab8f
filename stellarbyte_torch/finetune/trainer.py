"""Transformers' Trainer, extended by LoRA's loss terms and learning rates, and by exact losses and token counts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import seed_worker

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.finetune.batches import EpochBatches, EpochSampler, sample_lengths
from stellarbyte_torch.finetune.distillation import Teacher
from stellarbyte_torch.finetune.progress import NotFiniteError
from stellarbyte_torch.finetune.resumable_trainer import ResumableTrainer
from stellarbyte_torch.lora.optimizer import lora_optimizer
from stellarbyte_torch.lora.regularisation import regularisation


class FinetuneTrainer(ResumableTrainer):
    """A Trainer whose validation loss is the mean over trained tokens, and whose logs count real tokens.

    With a PeftModel, its config's orthogonal_reg, l2_reg and loraplus_lr_ratio take effect. When the weights of a
    mixture of experts train, the model's router losses are added. The validation loss includes neither these nor label
    smoothing.

    Args:
        pad_token_id: the token that the collator pads batches with.
        teacher: the model that this one learns from as well, if there is one.
        kwargs: arguments of ResumableTrainer and Trainer.
    """

    optimizer: Any

    def __init__(self, *, pad_token_id: int, teacher: Teacher | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._teacher = teacher
        model: Any = self.model
        lora = model.peft_config[model.active_adapters[0]] if isinstance(model, PeftModel) else None
        self._regularises = bool(getattr(lora, "orthogonal_reg", 0.0) or getattr(lora, "l2_reg", 0.0))
        self._has_lora_plus = getattr(lora, "loraplus_lr_ratio", None) is not None
        self._trains_routers = lora is None and getattr(model.config, "router_aux_loss_coef", None) is not None
        self._pad_token_id = pad_token_id
        self._tokens = torch.zeros((), dtype=torch.int64, device=self.args.device)
        self._rows: list[torch.Tensor] = []
        self._last_loss: torch.Tensor | float = 0.0

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trainer's method, which here also counts the tokens."""
        self._tokens += real_tokens(inputs, self._pad_token_id).to(self._tokens.device)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._last_loss = loss
        return loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Trainer's loss with the teacher's part, the router losses and the adapters' regularisation added."""
        assert not return_outputs  # only Trainer's evaluation asks for them, and prediction_step replaces it
        # Trainer sums the micro-batches' losses if these are shares of one mean, and averages them otherwise.
        items = num_items_in_batch if self.model_accepts_loss_kwargs else None
        labels = inputs["labels"]
        given = {**inputs, **({"output_router_logits": True} if self._trains_routers else {})}
        loss, outputs = super().compute_loss(model, given, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self._teacher is not None:
            read = {name: value for name, value in inputs.items() if name != "labels"}
            loss = loss + self._teacher.added(outputs.logits, read, labels, items, self._scale(items))
        if self._trains_routers:
            loss = loss + self._router_correction(outputs, labels, items)
        if self._regularises:
            assert isinstance(self.model, PeftModel)
            loss = loss + regularisation(self.model) / (
                1 if items is None else self.current_gradient_accumulation_steps
            )
        return loss

    def _router_correction(self, outputs: Any, labels: torch.Tensor, items: torch.Tensor | int | None) -> Any:
        """The term that makes a micro-batch's router losses count by its share of the step's `items` trained tokens.

        Transformers' models add them in full, ours adds the share, and with label smoothing no model adds any.
        """
        if getattr(outputs, "aux_loss", None) is None:
            return 0.0
        config: Any = self.accelerator.unwrap_model(self.model).config
        smoothed, ours = self.label_smoother is not None, config.model_type == ByteConfig.model_type
        if ours and not smoothed:
            return 0.0
        share: Any = 1.0 if items is None else (labels[:, 1:] != IGNORED_LABEL).sum() / items
        extra = config.router_aux_loss_coef * outputs.aux_loss
        if ours:
            extra = extra + config.router_z_loss_coef * outputs.z_loss
        return (share if smoothed else share - 1.0) * self._scale(items) * extra

    def _scale(self, items: Any) -> int:
        """The factor by which Trainer scales a loss that is a share of all processes' tokens."""
        return self.accelerator.num_processes if self.args.average_tokens_across_devices and items is not None else 1

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None, None]:
        """The cross entropy of a batch. Each row's sum and number of trained tokens are kept for evaluation_loop."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
        rows_B2 = torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1).float()], 1)
        loss = rows_B2[:, 0].sum() / rows_B2[:, 1].sum()
        # If batches do not divide evenly among the processes, some rows are repeated; this drops the copies.
        self._rows.append(self.accelerator.gather_for_metrics(rows_B2))
        return loss, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's method, with the loss as a mean over tokens; Trainer's own is a mean over batches."""
        self._rows = []
        output: Any = super().evaluation_loop(*args, **kwargs)
        loss, tokens = torch.cat(self._rows).cpu().double().sum(0).tolist()
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = loss / tokens
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's method; a training record also gets the number of real tokens since the last, on all devices."""
        if "loss" in logs:
            logs["tokens"] = int(self.accelerator.reduce(self._tokens, "sum").item())
            self._tokens.zero_()
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's optimizer, or LoRA+'s if the adapter's config has a loraplus_lr_ratio."""
        if self._has_lora_plus and self.optimizer is None:
            assert isinstance(self.model, PeftModel)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = lora_optimizer(self.model, optimizer_class, weight_decay=self.args.weight_decay, **options)
        with _from_config("optim, optim_args"):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's method. Raises UserError if the config has a field that the schedule does not know."""
        with _from_config("lr_scheduler_type, lr_scheduler_kwargs"):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that hold each sample once an epoch, for any number of processes and after any resumption."""
        strategy: Any = self.args.train_sampling_strategy
        if strategy == "batch_rebalance":  # Transformers' own strategy, which divides samples among processes itself
            return super().get_train_dataloader()
        args: Any = self.args
        dataset: Any = self.train_dataset
        processes = self.get_total_train_batch_size(args) // (self._train_batch_size * args.gradient_accumulation_steps)
        grouped = self._train_batch_size * processes * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = EpochBatches(
            EpochSampler(grouped, sample_lengths(dataset), seed, strategy),
            self._train_batch_size,
            # Processes that share one copy of the model get the same samples.
            args.process_index // (args.world_size // processes),
            processes,
            drop_last=args.dataloader_drop_last,
        )
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        # Accelerate is told of one process only, because EpochBatches already yields this process's part alone.
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's method with every validation row: dataloader_drop_last applies to training only."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's method, called before each optimizer step: the last moment at which the weights are still good."""
        norm = super()._get_grad_norm(model, grad_norm)
        # In float16 the loss scaler tries scales, and some of them overflow by design.
        if not self.args.fp16 and norm is not None and not math.isfinite(norm):
            self._stop_before_damage(float(norm))
        return norm

    def _stop_before_damage(self, norm: float) -> None:
        step = self.state.global_step
        loss = float(self._last_loss)
        name, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        kept = "nothing was trained yet"
        if step > 0:
            if not (Path(str(self.args.output_dir)) / f"checkpoint-{step}" / MANIFEST).is_file():
                self._save_checkpoint(self.model, None)
            kept = f"the model of step {step}, the last good one, is saved in {self.args.output_dir}/checkpoint-{step}"
        raise NotFiniteError(
            f"the {name} of step {step + 1} is {value}: lower training.learning_rate or raise training.warmup_steps in "
            f"another output_dir; {kept}"
        )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # Nobody reads the pickle, and PEFT's README.md is a form that is not filled in.
        assert self.args.output_dir is not None
        for name in ("training_args.bin", "README.md"):
            (Path(output_dir or self.args.output_dir) / name).unlink(missing_ok=True)


@contextmanager
def _from_config(fields: str) -> Iterator[None]:
    """Turns an error of an object made from `fields` into a UserError that names these fields."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"training.{fields}: {' '.join(str(error).split())}") from error


class EvaluateAtEnd(TrainerCallback):
    """Evaluates and saves after the last step too, whatever eval_steps and save_steps are."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Asks for both at the last step, unless they are done by epochs: the last epoch ends there anyway."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy == "steps"
            control.should_save = args.save_strategy in ("steps", "best")
        return control


def real_tokens(inputs: dict[str, Any], pad_token_id: int) -> torch.Tensor:
    """The number of tokens in a batch that are not padding; a row without a trained token counts as padding."""
    has_sample_B = (inputs["labels"] != IGNORED_LABEL).any(1)
    if "attention_mask" in inputs:
        return inputs["attention_mask"][has_sample_B].sum()
    # A packed row: its padding is a document of its own at the end.
    input_ids, positions = inputs["input_ids"], inputs["position_ids"]
    length = positions.shape[1]
    start_B1 = length - 1 - (positions == 0).flip(1).int().argmax(1, keepdim=True)
    is_before_BT = torch.arange(length, device=positions.device)[None] < start_B1
    is_filler_B1 = ((input_ids == pad_token_id) | is_before_BT).all(1, keepdim=True)
    return torch.where(is_filler_B1, start_B1, length)[has_sample_B].sum()
