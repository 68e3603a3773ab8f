"""Checks whether a folder holds the fine-tuning run that a config describes, and whether that run has ended."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from stellarbyte.config.plain import differing_fields
from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST, damage
from stellarbyte.reading import read_json, read_text
from stellarbyte_torch.data.samples import PreparedData
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.finetune.config import FinetuneConfig, load_saved_config
from stellarbyte_torch.finetune.distillation import Teacher
from stellarbyte_torch.finetune.report import Summary, is_summary

# Fields that may change when a run is resumed, because no training step depends on them.
_FREE_FIELDS = (
    *("output_dir", "early_stopping_patience", "training.eval", "training.save_", "training.per_device_eval_"),
    *("training.log", "training.report_to", "training.run_name", "training.project"),
    *("training.dataloader_num_workers", "training.dataloader_p", "training.dataloader_multiprocessing_context"),
    *("training.load_best_model_at_end", "training.use_cpu"),
)

_WHAT_TO_DO = (
    "a run goes on only with the config that it began with, because its learning rate and batches depend on it. Give "
    "these fields their old values, or choose another output_dir; to train the result further, name it as `model` in "
    "another config (for an adapter, the folder that `stellarbyte merge` makes). Only the fields for validating, "
    "saving and logging may change"
)

# Files in output_dir, beside config.yaml.
FINGERPRINT, TEACHER = "samples.sha256", "teacher.sha256"


def check_same_run(config: FinetuneConfig, run_dir: Path) -> None:
    """Refuses a folder that holds another run or something else. `config` must have its defaults filled in.

    Raises:
        UserError: the sentence names the fields that differ, or the entry that is in the folder.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        taken = [name for name in ("checkpoints", "adapter", "model", "config.json") if (run_dir / name).exists()]
        if taken:
            raise UserError(f"output_dir {run_dir} holds {taken[0]}, but no run of this command: choose another one")
        return
    try:
        before = load_saved_config(path)
    except UserError as error:
        raise UserError(f"output_dir {run_dir} holds another kind of run, choose another one: {error}") from error
    free: tuple[str, ...] = _FREE_FIELDS
    if (run_dir / TEACHER).exists() and None not in (before.distill, config.distill):
        free = (*free, "distill.teacher")  # its weights are compared when they are read
    differing = [found for found in differing_fields(before, config) if not found[0].startswith(free)]
    if differing and (newest_checkpoint(run_dir) or (run_dir / "summary.json").exists()):
        shown = ", ".join(f"{name} (was {a}, now {b})" for name, a, b in differing)
        raise UserError(f"output_dir {run_dir} holds a run with another config: {shown}; {_WHAT_TO_DO}")


def ended(config: FinetuneConfig, run_dir: Path, say: Callable[[str], None]) -> Summary | None:
    """The summary of the run in the folder if it has ended and its result is undamaged, else None."""
    if not (run_dir / "config.yaml").exists():
        return None
    try:
        summary = read_json(run_dir / "summary.json")
    except UserError:
        return None
    if not is_summary(summary):
        return None
    folder = result_folder(config, run_dir)
    problem = f"{folder} is missing" if not folder.exists() else None
    if (folder / MANIFEST).exists():
        problem = damage(folder)
    if problem is None:
        return summary
    say(f"the run in {run_dir} has ended, but {folder.name} is damaged ({problem}): it is made again")
    return None


def result_folder(config: FinetuneConfig, run_dir: Path) -> Path:
    """The folder in which the run saves its result."""
    return run_dir / ("adapter" if config.lora is not None else "model")


def check_same_data(data: PreparedData, run_dir: Path) -> None:
    """Raises UserError if the run in the folder trained on other samples, or on the same in another order."""
    path = run_dir / FINGERPRINT
    if os.path.lexists(path) and read_text(path, 1024).strip() != fingerprint(data):
        raise UserError(
            f"output_dir {run_dir} holds a run on other samples: the sources or the tokenizer have changed since; "
            "choose another output_dir"
        )


def check_same_teacher(teacher: Teacher, run_dir: Path) -> None:
    """Raises UserError if the run in the folder has learnt from other weights; earlier versions' runs say nothing."""
    path = run_dir / TEACHER
    if os.path.lexists(path) and read_text(path, 1024).strip() != teacher.fingerprint:
        raise UserError(
            f"output_dir {run_dir} holds a run that learns from other weights than distill.teacher "
            f"{teacher.config.teacher} has: name the run's own teacher, or choose another output_dir"
        )


def fingerprint(data: PreparedData) -> str:
    """A hash of all tokens in order, and of which of them are trained on."""
    digest = hashlib.sha256()
    for sample in (*data.samples.train, *data.samples.validation):
        digest.update(len(sample).to_bytes(8, "little") + sample.input_ids.tobytes() + sample.trained.tobytes())
    return digest.hexdigest()
