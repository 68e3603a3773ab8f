"""Runs fine-tuning, from the config to the files in the output folder; read `finetune` top to bottom."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, PrinterCallback, set_seed

from stellarbyte.chat.template import read_template
from stellarbyte.config.plain import differing_fields, save_yaml
from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST, damage
from stellarbyte.files import write_json, write_text
from stellarbyte.reading import read_json, read_text
from stellarbyte.staged_folder import partial_folder
from stellarbyte_torch.data.samples import PreparedData, prepare_data
from stellarbyte_torch.finetune.base_model import load_base, load_base_config, load_base_tokenizer
from stellarbyte_torch.finetune.card import write_card
from stellarbyte_torch.finetune.checkpoints import KnownBest, checkpoint_to_resume, lacks_validation, newest_checkpoint
from stellarbyte_torch.finetune.config import (
    FinetuneConfig,
    load_finetune_config,
)
from stellarbyte_torch.finetune.interrupt import AskedToStopError, Interrupt
from stellarbyte_torch.finetune.packing_check import check_packing
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.finetune.report import Summary, is_summary, opening, summarise
from stellarbyte_torch.finetune.setup import check_steps, make_trainable, training_arguments, training_fields
from stellarbyte_torch.finetune.trainer import EvaluateAtEnd, FinetuneTrainer
from stellarbyte_torch.lora.start import write_for_plain_base
from stellarbyte_torch.saving import saved_whole

# Fields that may change when a run is resumed, because no training step depends on them.
_FREE_FIELDS = (
    *("output_dir", "early_stopping_patience", "training.eval", "training.save_", "training.per_device_eval_"),
    *("training.log", "training.report_to", "training.run_name", "training.project"),
    *("training.dataloader_num_workers", "training.dataloader_p", "training.dataloader_multiprocessing_context"),
    *("training.load_best_model_at_end", "training.use_cpu"),
)

_WHAT_TO_DO = (
    "a run goes on only as it began, since its learning rate and its batches follow from these. Give them their old "
    "values, or choose another output_dir; to train on from its result, name that as `model` there (of an adapter, "
    "what `stellarbyte merge` makes). What may change is when it validates, saves and logs"
)

# In output_dir, beside config.yaml.
_FINGERPRINT = "samples.sha256"


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
    summary = _check_same_run(config, run_dir, display.say)
    if summary is not None:
        display.say(f"the run in {run_dir} has ended already")
        return summary

    with display.doing(f"loading the tokenizer of {config.model}"):
        model_config = load_base_config(config.model)
        tokenizer = _load_tokenizer(config)
    _check_fits(config, model_config, tokenizer)
    data = _prepare(config, tokenizer, display)
    arguments = training_arguments(config, data.trainer_arguments)
    is_main = arguments.process_index == 0
    check_steps(arguments, len(data.train))  # type: ignore[arg-type]
    with display.doing("checking checkpoints"):
        checkpoint = checkpoint_to_resume(run_dir, arguments, display.say)
    if checkpoint is not None:
        _check_same_data(data, run_dir)
    lacks = checkpoint is not None and lacks_validation(checkpoint)
    arguments.eval_on_start = arguments.eval_on_start and (checkpoint is None or lacks)

    with display.doing(f"loading {config.model}"):
        base = load_base(config.model, config.dtype, config.quantization)
        used_cache = getattr(base.config, "use_cache", True)
        set_seed(arguments.seed)
        model = make_trainable(base, config)
    if is_main:
        save_yaml(config, run_dir / "config.yaml")
        write_text(run_dir / _FINGERPRINT, _fingerprint(data) + "\n")

    interrupt = interrupt or Interrupt(speaks=is_main)
    progress = FinetuneProgress(run_dir / "metrics.jsonl", display, interrupt, is_main=is_main, lacks_validation=lacks)
    with _explained(), _refusals(), display.doing("preparing"):
        trainer = FinetuneTrainer(
            pad_token_id=data.collator.pad_token_id,
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
        folder = _result(config, run_dir)
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


def _check_same_run(config: FinetuneConfig, run_dir: Path, say: Callable[[str], None]) -> Summary | None:
    """The summary of the run in `run_dir` if that has ended. Raises UserError if it is not a run with this config."""
    path = run_dir / "config.yaml"
    if not path.exists():
        taken = [name for name in ("checkpoints", "adapter", "model", "config.json") if (run_dir / name).exists()]
        if taken:
            raise UserError(f"output_dir {run_dir} holds {taken[0]}, but no run of this command: choose another one")
        return None
    try:
        before = load_finetune_config(path)
    except UserError as error:
        raise UserError(f"output_dir {run_dir} holds another kind of run, choose another one: {error}") from error
    differing = [found for found in differing_fields(before, config) if not found[0].startswith(_FREE_FIELDS)]
    if differing and (newest_checkpoint(run_dir) or (run_dir / "summary.json").exists()):
        shown = ", ".join(f"{name} (was {a}, now {b})" for name, a, b in differing)
        raise UserError(f"output_dir {run_dir} holds a run with another config: {shown}; {_WHAT_TO_DO}")
    try:
        summary = read_json(run_dir / "summary.json")
    except UserError:
        return None
    if not is_summary(summary):
        return None
    folder = _result(config, run_dir)
    problem = f"{folder} is missing" if not folder.exists() else None
    if (folder / MANIFEST).exists():
        problem = damage(folder)
    if problem is None:
        return summary
    say(f"the run in {run_dir} has ended, but {folder.name} is damaged ({problem}): it is made again")
    return None


def _result(config: FinetuneConfig, run_dir: Path) -> Path:
    return run_dir / ("adapter" if config.lora is not None else "model")


def _load_tokenizer(config: FinetuneConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template that the run trains on, which is then saved with the model."""
    tokenizer = load_base_tokenizer(config.data.tokenizer or config.model)
    template = read_template(config.data.chat_template, "data.chat_template")
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _check_fits(config: FinetuneConfig, model_config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    context = getattr(model_config, "max_position_embeddings", None)
    if context is not None and config.data.max_length > context:
        raise UserError(
            f"data.max_length {config.data.max_length} is more than the {context} positions of model {config.model}: "
            f"set it to {context} or less"
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


def _check_same_data(data: PreparedData, run_dir: Path) -> None:
    path = run_dir / _FINGERPRINT
    if os.path.lexists(path) and read_text(path, 1024).strip() != _fingerprint(data):
        raise UserError(
            f"output_dir {run_dir} holds a run on other samples: the sources or the tokenizer have changed since; "
            "choose another output_dir"
        )


def _fingerprint(data: PreparedData) -> str:
    """A hash of all tokens in order, and of which of them are trained on."""
    digest = hashlib.sha256()
    for sample in (*data.samples.train, *data.samples.validation):
        digest.update(len(sample).to_bytes(8, "little") + sample.input_ids.tobytes() + sample.trained.tobytes())
    return digest.hexdigest()


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
            "training.gradient_accumulation_steps) or data.max_length, or set training.activation_checkpointing"
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
