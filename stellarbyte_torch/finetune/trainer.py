"""transformers' Trainer with what fine-tuning needs beside it: LoRA's own loss and rates, exact losses and counts."""

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
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.data.collation import IGNORED_LABEL
from stellarbyte_torch.finetune.batches import EpochBatches, EpochSampler, sample_lengths
from stellarbyte_torch.finetune.progress import NotFiniteError
from stellarbyte_torch.finetune.resumable_trainer import ResumableTrainer
from stellarbyte_torch.lora.optimizer import lora_optimizer
from stellarbyte_torch.lora.regularisation import regularisation


class FinetuneTrainer(ResumableTrainer):
    """A Trainer whose validation loss is the mean over trained tokens, and whose logs count real tokens.

    With a PeftModel, its config's orthogonal_reg, l2_reg and loraplus_lr_ratio take effect. Where weights of a mixture
    of experts train, so do its routers, by the losses that the model has for them; the validation loss leaves these
    out, and label smoothing as well.

    Args:
        pad_token_id: what the collator fills batches up with.
        kwargs: ResumableTrainer's and Trainer's own.
    """

    def __init__(self, *, pad_token_id: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
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
        """Trainer's, counting tokens."""
        self._tokens += real_tokens(inputs, self._pad_token_id).to(self._tokens.device)
        self._last_loss = super().training_step(model, inputs, num_items_in_batch)
        return self._last_loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Trainer's, and what the adapters add to it."""
        assert not return_outputs  # that is for evaluation, which goes its own way here
        # Micro-batches are summed if their losses are shares of one mean, else averaged.
        items = num_items_in_batch if self.model_accepts_loss_kwargs else None
        labels = inputs["labels"]
        given = {**inputs, **({"output_router_logits": True} if self._trains_routers else {})}
        loss, outputs = super().compute_loss(model, given, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self._trains_routers:
            loss = loss + self._router_correction(outputs, labels, items)
        if self._regularises:
            assert isinstance(self.model, PeftModel)
            loss = loss + regularisation(self.model) / (
                1 if items is None else self.current_gradient_accumulation_steps
            )
        return loss

    def _router_correction(self, outputs: Any, labels: torch.Tensor, items: torch.Tensor | int | None) -> Any:
        """What brings the routers' losses in a micro-batch's loss to its share of all that `items` tokens train.

        transformers' models add them in full, ours adds the share, and with label smoothing none of them adds any.
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
        # As Trainer does with the loss that is a share of all processes' tokens.
        scale = self.accelerator.num_processes if self.args.average_tokens_across_devices and items is not None else 1
        return (share if smoothed else share - 1.0) * scale * extra

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,  # noqa: ARG002 - Trainer's signature
        ignore_keys: list[str] | None = None,  # noqa: ARG002
    ) -> tuple[torch.Tensor, None, None]:
        """The cross entropy of a batch, remembered for each of its rows together with how many tokens it is of."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")[:, 1:]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits[:, :-1].float()
        losses = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none")
        rows_B2 = torch.stack([losses.sum(1), (labels != IGNORED_LABEL).sum(1).float()], 1)
        loss = rows_B2[:, 0].sum() / rows_B2[:, 1].sum()
        # Where batches do not divide evenly among the processes, rows come twice; this leaves the copies out.
        self._rows.append(self.accelerator.gather_for_metrics(rows_B2))
        return loss, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, with the mean over tokens as the loss, where Trainer's is one over batches."""
        self._rows = []
        output: Any = super().evaluation_loop(*args, **kwargs)
        loss, tokens = torch.cat(self._rows).cpu().double().sum(0).tolist()
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = loss / tokens
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's; a line about training tells how many real tokens it is about, on all devices."""
        if "loss" in logs:
            logs["tokens"] = int(self.accelerator.reduce(self._tokens, "sum").item())
            self._tokens.zero_()
        super().log(logs, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Trainer's, or LoRA+'s."""
        if self._has_lora_plus and self.optimizer is None:
            assert isinstance(self.model, PeftModel)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = lora_optimizer(self.model, optimizer_class, weight_decay=self.args.weight_decay, **options)
        with _from_config("optim, optim_args"):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Trainer's. Raises UserError: a field of the config that the schedule does not have."""
        with _from_config("lr_scheduler_type, lr_scheduler_kwargs"):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches that hold each sample once an epoch, however many processes share them and wherever a run goes on."""
        strategy: Any = self.args.train_sampling_strategy
        if strategy == "batch_rebalance":  # Transformers' own, which is aware of the processes
            return super().get_train_dataloader()
        args: Any = self.args
        dataset: Any = self.train_dataset
        processes = self.get_total_train_batch_size(args) // (self._train_batch_size * args.gradient_accumulation_steps)
        grouped = self._train_batch_size * processes * args.gradient_accumulation_steps
        seed = args.seed if args.data_seed is None else args.data_seed
        batches = EpochBatches(
            EpochSampler(grouped, sample_lengths(dataset), seed, strategy),
            self._train_batch_size,
            # Processes that share one copy of the model take the same samples.
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
        # As if for one process: the batches know already which of them this process takes.
        return prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Trainer's, with every validation row: dataloader_drop_last is about training."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's, asked before each of the optimizer's steps: the last moment at which the weights are good."""
        norm = super()._get_grad_norm(model, grad_norm)
        # In float16 the gradient's scale is found by trying.
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
        # A pickle that nobody reads, and a card in which PEFT has left everything to be filled in.
        assert self.args.output_dir is not None
        for name in ("training_args.bin", "README.md"):
            (Path(output_dir or self.args.output_dir) / name).unlink(missing_ok=True)


@contextmanager
def _from_config(fields: str) -> Iterator[None]:
    """Names the fields that something is made of, which refuses them."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"training.{fields}: {' '.join(str(error).split())}") from error


class EvaluateAtEnd(TrainerCallback):
    """Evaluates and saves after the last step too, wherever eval_steps and save_steps fall."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for both at the last step; what is done by epochs comes anyway, at the end of the last one."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy == "steps"
            control.should_save = args.save_strategy in ("steps", "best")
        return control


def real_tokens(inputs: dict[str, Any], pad_token_id: int) -> torch.Tensor:
    """How many tokens of a batch are no padding; a row without a trained token is all padding."""
    has_sample_B = (inputs["labels"] != IGNORED_LABEL).any(1)
    if "attention_mask" in inputs:
        return inputs["attention_mask"][has_sample_B].sum()
    # Packed: what fills a row up is its last document, which holds nothing else.
    input_ids, positions = inputs["input_ids"], inputs["position_ids"]
    length = positions.shape[1]
    start_B1 = length - 1 - (positions == 0).flip(1).int().argmax(1, keepdim=True)
    is_before_BT = torch.arange(length, device=positions.device)[None] < start_B1
    is_filler_B1 = ((input_ids == pad_token_id) | is_before_BT).all(1, keepdim=True)
    return torch.where(is_filler_B1, start_B1, length)[has_sample_B].sum()
