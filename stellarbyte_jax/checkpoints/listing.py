"""Tells of the checkpoints of a run: their age, size and figures, why each is kept, and whether it is damaged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from stellarbyte.checkpoint_names import UNFINISHED, committed_at, size_of
from stellarbyte.config.build import build
from stellarbyte.config.nodes import Node, read_yaml
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.metrics_file import records
from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.checkpoints.array_files import read_numpy_arrays
from stellarbyte_jax.checkpoints.broken import BROKEN
from stellarbyte_jax.checkpoints.file_errors import check_plain_files, is_about_files, reason
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of, delete_whole
from stellarbyte_jax.checkpoints.metadata import read_metadata
from stellarbyte_jax.checkpoints.needed import forget_needed, needed_by
from stellarbyte_jax.checkpoints.retention import Retention
from stellarbyte_jax.run_folder import check_is_run, model_files


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a run.

    saved_at: the time at which it was whole; None if its files do not say. metrics: the figures of the validation at
    its step, empty without one. kept_by: the rules that keep it; if there is none, the next save deletes it. damage:
    what is wrong with it; None if nothing is, or it was not verified.
    """

    step: int
    saved_at: datetime | None
    bytes: int
    metrics: dict[str, Any] = field(default_factory=dict)
    kept_by: list[str] = field(default_factory=list)
    damage: str | None = None


def list_checkpoints(
    run_dir: Place, *, verify: bool = False, progress: Callable[[int, int], None] = lambda *_: None
) -> list[Listed]:
    """The checkpoints of a run, ascending by step. Nothing in its folder changes.

    verify: whether to read all files of each checkpoint and hold them against their checksums. progress: called with
    the number of checkpoints that are verified, and of all.

    Raises:
        UserError: the folder is no pretraining run's, or its config or metrics cannot be read.
    """
    check_is_run(run_dir, "RUN_DIR")
    steps = checkpoint_steps(run_dir)
    figures = _figures(run_dir)
    config, rolls_back = _config(run_dir)
    reasons = Retention(config, run_dir, figures, rolls_back=rolls_back).reasons(steps)
    listed = []
    for done, step in enumerate(steps):
        folder = checkpoints_of(run_dir) / str(step)
        if verify:
            progress(done, len(steps))
        damage = damage_of(folder) if verify else None
        if not folder.is_dir():  # the run is in training, and has deleted it
            continue
        at = committed_at(folder)
        saved_at = None if at is None else datetime.fromtimestamp(at, UTC)
        listed.append(Listed(step, saved_at, size_of(folder), figures.get(step, {}), reasons[step], damage))
    return listed


def best_step(run_dir: Place) -> int:
    """The step of the checkpoint that is the best by the run's checkpoint.metric_for_best_model, at its own step.

    Raises:
        UserError: the folder is no pretraining run's, or none of its checkpoints was validated.
    """
    check_is_run(run_dir, "RUN_DIR")
    config, _ = _config(run_dir)
    step = Retention(config, run_dir, _figures(run_dir)).best(checkpoint_steps(run_dir))
    if step is None:
        raise UserError(
            f"{run_dir} has no checkpoint of a step with a {config.metric_for_best_model} in metrics.jsonl, so none is "
            "the best: name a step"
        )
    return step


def _figures(run_dir: Place) -> dict[int, dict[str, Any]]:
    """Step -> the figures of its validation."""
    figures: dict[int, dict[str, Any]] = {}
    for _, record in records(run_dir / "metrics.jsonl"):
        if "validation_loss" in record:
            figures[record["step"]] = {name: value for name, value in record.items() if name != "step"}
    return figures


def beside_checkpoints(run_dir: Place) -> dict[str, str]:
    """What else is in the folder of a run's checkpoints: name -> what it is."""
    folder = checkpoints_of(run_dir)
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    steps = set(map(str, checkpoint_steps(run_dir)))
    partial = (lambda name: name.isdecimal()) if isinstance(folder, BucketPath) else (lambda name: UNFINISHED in name)
    return {
        name: "being written, or left by a run that was killed: the next run clears it away"
        if partial(name)
        else "broken, set aside by a run that went on from an older one: nothing needs it"
        for name in names
        if name not in steps and (partial(name) or name.endswith(BROKEN))
    }


def damage_of(checkpoint: Place) -> str | None:
    """What is wrong with a checkpoint's files, in a few words; None if all that is read of it is what was saved.

    Its arrays are read on one host, an item at a time.
    """
    try:
        check_plain_files(checkpoint)
        for item, sums in read_metadata(checkpoint).sums.items():
            try:
                read_numpy_arrays(checkpoint.absolute() / item, sums)
            except Exception as error:
                if not is_about_files(error):
                    raise
                return f"{item}: {reason(error)}"
    except (OSError, ValueError) as error:
        return reason(error)
    return None


def delete_checkpoint(run_dir: Place, step: int, *, force: bool = False) -> None:
    """Deletes a checkpoint of a run that nobody is training.

    force: whether to delete it even if it is the only one, or another run needs it.

    Raises:
        UserError: there is no such checkpoint, it must not be deleted, or the run is in training.
    """
    check_is_run(run_dir, "RUN_DIR")
    with folder_lock(run_dir, doing="checkpoints --delete"):
        steps = checkpoint_steps(run_dir)
        if step not in steps:
            there = f"only of {', '.join(map(str, steps))}" if steps else "and no other"
            raise UserError(f"--delete {step}: {checkpoints_of(run_dir)} holds no checkpoint of that step, {there}")
        others = needed_by(run_dir).get(step)
        if others and not force:
            raise UserError(
                f"--delete {step}: the adapters or students in {', '.join(others)} need this checkpoint and cannot go "
                "on without it; if they are of no use any more, add --force"
            )
        if steps == [step] and not force:
            raise UserError(f"--delete {step}: it is the run's only checkpoint; to delete it all the same, add --force")
        delete_whole(checkpoints_of(run_dir) / str(step))
        forget_needed(run_dir, step)


def _config(run_dir: Place) -> tuple[CheckpointConfig, bool]:
    """How the run keeps its checkpoints, and whether it rolls back; an imported model has only its first."""
    whole, _ = model_files(run_dir)
    if not whole.is_file():
        return CheckpointConfig(), False
    sections = read_yaml(whole).value
    section, training = sections.get("checkpoint"), sections.get("training")
    policy = training.value.get("on_not_finite") if training is not None and isinstance(training.value, dict) else None
    config = build(CheckpointConfig, section or Node({}, str(whole)), "checkpoint")
    return config, policy is not None and policy.value == "rollback"
