"""Runs fine-tuning, from the config to the files in the output folder; read `finetune` top to bottom."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, PrinterCallback, set_seed

from stellarbyte.chat.template import read_template
from stellarbyte.config.plain import save_yaml
from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.files import write_json, write_text
from stellarbyte.staged_folder import partial_folder
from stellarbyte_torch.data.samples import PreparedData, prepare_data
from stellarbyte_torch.finetune.base_model import load_base, load_base_config, load_base_tokenizer
from stellarbyte_torch.finetune.card import write_card
from stellarbyte_torch.finetune.checkpoints import KnownBest, checkpoint_to_resume, lacks_validation
from stellarbyte_torch.finetune.config import FinetuneConfig
from stellarbyte_torch.finetune.distillation import check_teacher, load_teacher
from stellarbyte_torch.finetune.interrupt import AskedToStopError, Interrupt
from stellarbyte_torch.finetune.packing_check import check_packing
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.finetune.report import Summary, opening, summarise
from stellarbyte_torch.finetune.same_run import (
    FINGERPRINT,
    TEACHER,
    check_same_data,
    check_same_run,
    check_same_teacher,
    ended,
    fingerprint,
    result_folder,
)
from stellarbyte_torch.finetune.setup import check_steps, make_trainable, training_arguments, training_fields
from stellarbyte_torch.finetune.trainer import EvaluateAtEnd, FinetuneTrainer
from stellarbyte_torch.lora.start import write_for_plain_base
from stellarbyte_torch.saving import saved_whole


def finetune(config: FinetuneConfig, display: Display, interrupt: Interrupt | None = None) -> Summary:
    """Trains to the end, starting from the newest checkpoint in `output_dir` if there is one.

    interrupt: must not be entered yet. A caller that passes one can read from it which signal ended the run.

    Returns:
        The figures of the run; "finished" is False if a signal ended it early (it is saved and can be resumed).

    Raises:
        UserError: the model, the data or an earlier run does not fit the config; this machine lacks something that
            the config asks for; or the loss is no longer finite.
    """
    run_dir = Path(config.output_dir)
    # The defaults are filled in first, so that the config compared and written holds all that the run depends on.
    config = replace(config, training=training_fields(config))
    check_same_run(config, run_dir)
    summary = ended(config, run_dir, display.say)
    if summary is not None:
        display.say(f"the run in {run_dir} has ended already")
        return summary

    with display.doing(f"loading the tokenizer of {config.model}"):
        model_config = load_base_config(config.model)
        tokenizer = _load_tokenizer(config)
    check_fits(config, model_config, tokenizer)
    check_teacher(config.distill, model_config, tokenizer, config.data.sequence_length)
    data = _prepare(config, tokenizer, display)
    arguments = training_arguments(config, data.trainer_arguments)
    is_main = arguments.process_index == 0
    check_steps(arguments, len(data.train))  # type: ignore[arg-type]
    with display.doing("checking checkpoints"):
        checkpoint = checkpoint_to_resume(run_dir, arguments, display.say)
    if checkpoint is not None:
        check_same_data(data, run_dir)
    lacks = checkpoint is not None and lacks_validation(checkpoint)
    arguments.eval_on_start = arguments.eval_on_start and (checkpoint is None or lacks)

    with display.doing(f"loading {config.model}"):
        base = load_base(config.model, config.dtype, config.quantization)
        used_cache = getattr(base.config, "use_cache", True)
        set_seed(arguments.seed)
        model = make_trainable(base, config)
        packed_rows = arguments.train_batch_size if config.data.packing else 0
        teacher = load_teacher(config.distill, config.dtype, arguments.device, packed_rows)
        if teacher is not None and checkpoint is not None:
            check_same_teacher(teacher, run_dir)
    if is_main:
        save_yaml(config, run_dir / "config.yaml")
        write_text(run_dir / FINGERPRINT, fingerprint(data) + "\n")
        if teacher is not None:
            write_text(run_dir / TEACHER, teacher.fingerprint + "\n")

    interrupt = interrupt or Interrupt(speaks=is_main)
    progress = FinetuneProgress(run_dir / "metrics.jsonl", display, interrupt, is_main=is_main, lacks_validation=lacks)
    with _explained(), _refusals(), display.doing("preparing"):
        trainer = FinetuneTrainer(
            pad_token_id=data.collator.pad_token_id,
            teacher=teacher,
            model=model,
            args=arguments,
            data_collator=data.collator,
            train_dataset=data.train,
            eval_dataset=data.validation,
            interrupt=interrupt,
            doing=display.doing,
            callbacks=[EvaluateAtEnd(), KnownBest(), progress, *_early_stopping(config)],
        )
    if config.data.packing:
        with display.doing("checking that packed samples do not see each other"):
            _check_packing(config, trainer, len(tokenizer))
    trainer.remove_callback(PrinterCallback)
    progress.say(opening(config.model, model, data.samples.summary(), arguments, checkpoint))
    with interrupt:  # signals are handled until the result is on disk
        with progress, _explained(), suppress(AskedToStopError):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        base.config.use_cache = used_cache
        folder = result_folder(config, run_dir)
        summary = summarise(trainer, progress, None if interrupt.stopped else folder)
        if interrupt.stopped:
            step = trainer.state.global_step
            where = f"stopped after step {step}, saved in {run_dir}" if step else "stopped before the first step"
            if interrupt.failure is not None and interrupt.number is None:
                failure = interrupt.failure
                raise UserError(f"{failure}; {where}: the same command goes on from there") from failure
            with suppress(UserError):  # the output may be closed
                progress.say(f"{where}: the same command goes on from there")
            return summary
        with display.doing(f"saving {folder}"):
            samples, model_type = data.samples.summary(), getattr(base.config, "model_type", "")
            card = partial(write_card, config=config, summary=summary, samples=samples, model_type=model_type)
            _save(trainer, tokenizer, folder, card)
        if is_main:
            write_json(run_dir / "summary.json", summary)
    return summary


def _save(
    trainer: FinetuneTrainer, tokenizer: PreTrainedTokenizerBase, folder: Path, card: Callable[[Path], None]
) -> None:
    """Writes the trained weights, tokenizer and card into `folder`. A collective: every process must call it."""
    if trainer.is_fsdp_enabled:  # every process holds a part of the model, and Trainer would save the parts
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    is_main = trainer.args.process_index == 0
    with saved_whole(folder) if is_main else nullcontext(partial_folder(folder)) as new:
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(new))
        if is_main:
            write_for_plain_base(trainer.accelerator.unwrap_model(trainer.model), new)
            tokenizer.save_pretrained(new)
            card(new)
        trainer.accelerator.wait_for_everyone()


def _load_tokenizer(config: FinetuneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that the run trains on, which is then saved with the model."""
    tokenizer = load_base_tokenizer(config.data.tokenizer or config.model)
    template = read_template(config.data.chat_template, "data.chat_template")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def check_fits(config: FinetuneConfig, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses samples longer than the model's context, and a tokenizer with more tokens than it; raises UserError."""
    context = getattr(model_config, "max_position_embeddings", None)
    if context is not None and config.data.sequence_length > context:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is more than the {context} positions of model "
            f"{config.model}: set it to {context} or less"
        )
    vocab_size = getattr(model_config, "vocab_size", None)
    if vocab_size is not None and len(tokenizer) > vocab_size:
        raise UserError(
            f"the tokenizer of {len(tokenizer)} tokens has more than the vocab_size {vocab_size} of model "
            f"{config.model}: set data.tokenizer to the one that it was trained with"
        )


def _prepare(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase, display: Display) -> PreparedData:
    with display.doing("reading conversations:") as read:
        data = prepare_data(config.data, tokenizer, lambda count: read(count, None))
    if data.validation is None and config.data.validation_fraction > 0:
        raise UserError(
            f"data.validation_fraction {config.data.validation_fraction} sets nothing apart, as the samples are too "
            "few or all equal: set it to 0, or give more data"
        )
    return data


def _check_packing(config: FinetuneConfig, trainer: FinetuneTrainer, vocab_size: int) -> None:
    """Raises UserError if samples packed into one row would not train as they would alone."""
    model: Any = trainer.model
    verdict = check_packing(model, vocab_size, rows=min(2, trainer.args.train_batch_size))
    if verdict.is_exact:
        return
    name = f"{config.model} ({getattr(model.config, 'model_type', type(model).__name__)})"
    if verdict.complaint:
        why = f"which cannot take packed rows ({verdict.complaint[:200]})"
        raise UserError(f"data.packing is not for model {name}, {why}: set it to false")
    how = "sees the one in front" if verdict.sees_others else "does not give the same result as alone"
    raise UserError(
        f"data.packing is not for model {name}: a packed sample {how}, and its logits move by "
        f"{max(verdict.seen, verdict.moved):.1%}; set it to false"
    )


def _early_stopping(config: FinetuneConfig) -> list[EarlyStoppingCallback]:
    patience = config.early_stopping_patience
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


@contextmanager
def _explained() -> Iterator[None]:
    """Raises UserError for what this machine lacks and only the Trainer finds out: GPU memory or a package."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory is not enough: lower training.per_device_train_batch_size (and raise "
            "training.gradient_accumulation_steps) or data.sequence_length, or set training.activation_checkpointing"
        ) from error
    except ImportError as error:  # such as an optimizer's package
        raise UserError(f"training: {' '.join(str(error).split())}") from error


@contextmanager
def _refusals() -> Iterator[None]:
    """Raises UserError where Trainer's constructor refuses its arguments; later, the mistake would be ours."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RuntimeError) as error:
        raise UserError(f"training: {' '.join(str(error).split())}") from error
