"""transformers' Trainer with what fine-tuning needs beside it: LoRA's own loss and rates, exact losses and counts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from stellarbyte_torch.collation import IGNORED_LABEL
from stellarbyte_torch.lora_optimizer import lora_optimizer
from stellarbyte_torch.lora_regularisation import regularisation


class FinetuneTrainer(Trainer):
    """A Trainer whose validation loss is the mean over trained tokens, and whose logs count real tokens.

    With a PeftModel, its config's orthogonal_reg, l2_reg and loraplus_lr_ratio take effect. Where weights of a mixture
    of experts train, so do its routers, by the losses that the model has for them; the validation loss leaves these
    out, and label smoothing as well.

    Args:
        pad_token_id: what the collator fills batches up with.
        kwargs: Trainer's own.
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

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Trainer's, counting tokens."""
        self._tokens += real_tokens(inputs, self._pad_token_id).to(self._tokens.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Trainer's, and what the adapters add to it."""
        assert not return_outputs  # that is for evaluation, which goes its own way here
        if self._trains_routers:
            inputs = {**inputs, "output_router_logits": True}
        loss: Any = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        if self._regularises:
            assert isinstance(self.model, PeftModel)
            # Micro-batches are summed if their losses are shares of one mean, else averaged.
            summed = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            loss = loss + regularisation(self.model) / (self.current_gradient_accumulation_steps if summed else 1)
        return loss

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
        return super().create_optimizer(model)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(dataset)
        lengths = [len(item["input_ids"]) for item in dataset]
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(batch_size * self.args.world_size, lengths, seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle that nobody reads.
        assert self.args.output_dir is not None
        (Path(output_dir or self.args.output_dir) / "training_args.bin").unlink(missing_ok=True)


class EpochSampler(LengthGroupedSampler):
    """transformers' batches of like lengths, in an order that seed and epoch alone decide, so that a run can go on."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The data loader tells which epoch begins."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return super().__iter__()


class EvaluateAtEnd(TrainerCallback):
    """Evaluates and saves after the last step too, wherever eval_steps and save_steps fall."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for both at the last step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        return control


def real_tokens(inputs: dict[str, Any], pad_token_id: int) -> torch.Tensor:
    """How many tokens of a batch are no padding."""
    if "attention_mask" in inputs:
        return inputs["attention_mask"].sum()
    # Packed: what fills a row up is its last document, which holds nothing else.
    input_ids, positions = inputs["input_ids"], inputs["position_ids"]
    length = positions.shape[1]
    start_B1 = length - 1 - (positions == 0).flip(1).int().argmax(1, keepdim=True)
    is_before_BT = torch.arange(length, device=positions.device)[None] < start_B1
    is_filler_B1 = ((input_ids == pad_token_id) | is_before_BT).all(1, keepdim=True)
    return torch.where(is_filler_B1, start_B1, length).sum()
