"""Finds, checks and removes a fine-tuning run's checkpoints; an incomplete or damaged one is never resumed from."""

import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte.errors import UserError, shown
from stellarbyte.file_manifest import MANIFEST, damage, read_manifest
from stellarbyte.lora_values import is_whole
from stellarbyte.reading import read_json
from stellarbyte_torch.finetune.training_values import MOST

# A key in a checkpoint's manifest: whether a signal cut short the validation at its step.
LACKS_VALIDATION = "lacks_validation"

_NAME = re.compile(r"checkpoint-(0|[1-9]\d{0,17})")


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    finished = [path for path in _checkpoints(run_dir / "checkpoints") if (path / MANIFEST).is_file()]
    return finished[-1] if finished else None


def checkpoint_to_resume(run_dir: Path, arguments: TrainingArguments, say: Callable[[str], None]) -> Path | None:
    """The newest undamaged checkpoint, or None. Damaged newer ones and a damaged best one are set aside and reported.

    The first process looks, and tells the others.

    Raises:
        UserError: another number of processes wrote it; a process cannot see it; a damaged one cannot be set aside.
    """
    found: list[Any] = [None]
    if arguments.process_index == 0:
        found = [_newest_whole(run_dir / "checkpoints", say)]
    if arguments.world_size > 1:
        broadcast_object_list(found)
    if found[0] is None:
        return None
    checkpoint: Path = run_dir / "checkpoints" / found[0]
    manifest = read_manifest(checkpoint)
    if manifest is None:
        raise UserError(
            f"process {arguments.process_index} does not see {checkpoint}, from which the first one goes on: "
            "put output_dir on a disk that all hosts share"
        )
    before = manifest.get("processes", arguments.world_size)
    if before != arguments.world_size:
        raise UserError(
            f"{checkpoint} was written by {before} process(es), and now there are {arguments.world_size}: batches "
            f"would differ; start it on {before}, or choose another output_dir"
        )
    return checkpoint


def lacks_validation(checkpoint: Path) -> bool:
    """Whether the validation at the checkpoint's step is still to be done."""
    return (read_manifest(checkpoint) or {}).get(LACKS_VALIDATION) is True


@contextmanager
def readable(checkpoint: str | None) -> Iterator[None]:
    """Turns any error from loading a checkpoint's files into one sentence.

    The files have been compared with the manifest before, but whoever wrote the folder may have written that as well.

    Raises:
        UserError: the checkpoint cannot be loaded; the sentence names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(
            f"{checkpoint} cannot be resumed from ({why[:200]}): remove it, and the same command goes on from an older "
            "one"
        ) from error


class KnownBest(TrainerCallback):
    """Finds the best model's checkpoint in the run's folder, wherever that has moved, and forgets one that is lost."""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002 - the signature of callbacks
        **_: Any,
    ) -> None:
        """Corrects the path in the state that Trainer has just read, which may be from before the folder moved."""
        if state.best_global_step:
            best = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
            if (best / MANIFEST).is_file():
                state.best_model_checkpoint = str(best)
            else:
                state.best_model_checkpoint = state.best_metric = state.best_global_step = None


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints until `limit` are left, but never the newest or the best. None keeps all."""
    finished = [path for path in _checkpoints(folder) if (path / MANIFEST).is_file()]
    if not limit or limit < 1 or not finished:
        return
    kept = {finished[-1]} | ({folder / Path(best).name} & set(finished) if best is not None else set())
    removable = [checkpoint for checkpoint in finished if checkpoint not in kept]
    for checkpoint in removable[: max(0, len(finished) - max(limit, len(kept)))]:
        (checkpoint / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed folder counts as incomplete
        shutil.rmtree(checkpoint, ignore_errors=True)


def _checkpoints(folder: Path) -> list[Path]:
    """The folders named as Trainer names checkpoints, oldest first; anything else there is ignored."""
    found = [
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


def _newest_whole(folder: Path, say: Callable[[str], None]) -> str | None:
    for checkpoint in reversed(_checkpoints(folder)):
        if not (checkpoint / MANIFEST).exists():
            say(f"{checkpoint} was not written to its end: passed over")
            continue
        problem = damage(checkpoint) or _wrong_state(checkpoint)
        if problem is None:
            best = _best_step(checkpoint)
            if best is not None and (folder / f"checkpoint-{best}").is_dir():
                lost = damage(folder / f"checkpoint-{best}")
                if lost is not None:
                    _set_aside(folder / f"checkpoint-{best}", lost, say)
                    say(f"the best model so far, of step {best}, is lost: the best from here on counts")
            return checkpoint.name
        _set_aside(checkpoint, problem, say)
    return None


def _wrong_state(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's record of its progress, in a few words; None if nothing is."""
    state = _state(checkpoint)
    step = state.get("global_step")
    if checkpoint.name != f"checkpoint-{step}":
        return f"it holds step {shown(step)}"
    for name in ("global_step", "max_steps", "num_train_epochs", "train_batch_size"):
        if not is_whole(state.get(name), 0, MOST):
            return f"its {name} is {shown(state.get(name))}"
    history = state.get("log_history")
    if not isinstance(history, list) or not all(isinstance(record, dict) for record in history):
        return "its log_history is no list of records"
    return None


def _best_step(checkpoint: Path) -> int | None:
    best = _state(checkpoint).get("best_global_step")
    return best if isinstance(best, int) and checkpoint.name != f"checkpoint-{best}" else None


def _state(checkpoint: Path) -> dict[str, Any]:
    try:
        state = read_json(checkpoint / "trainer_state.json")
    except UserError:
        return {}
    return state if isinstance(state, dict) else {}


def _set_aside(checkpoint: Path, problem: str, say: Callable[[str], None]) -> None:
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    for number in range(2, 1000):
        if not aside.exists():
            break
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}-{number}")
    try:
        checkpoint.rename(aside)
    except OSError as error:
        raise UserError(f"{checkpoint} is damaged ({problem}) and cannot be set aside: {error.strerror}") from error
    say(f"{checkpoint} is damaged ({problem}): set aside as {aside.name}")
