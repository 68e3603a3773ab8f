"""Checkpoints of a run: parameters, optimizer state and metadata, saved as one step and read back strictly."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import orbax.checkpoint as ocp

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte_jax.checkpoints.array_files import (
    Tree,
    check_bits,
    check_plain_files,
    checksums,
    is_about_files,
    is_from_system,
    quieten_orbax,
    read_arrays,
    read_numpy_arrays,
    reason,
    tensorstore_silenced,
)
from stellarbyte_jax.checkpoints.broken import cannot_be_read, set_aside, warn_of_broken, warn_of_unchecked
from stellarbyte_jax.checkpoints.metadata import METADATA, Base, RunMetadata, Stored, read_metadata, to_stored
from stellarbyte_jax.processes.joined import ALONE, Processes

__all__ = [
    "Base",
    "Checkpointer",
    "RunMetadata",
    "checkpoint_steps",
    "fingerprint",
    "latest_step",
    "load_metadata",
    "load_params",
    "restore",
    "restore_params",
    "save_imported",
]

Result = TypeVar("Result")


_STEP = re.compile(r"0|[1-9][0-9]{0,17}")


class Checkpointer:
    """Writes the checkpoints of one run, in the background, and keeps the last `save_total_limit`.

    An older checkpoint is deleted only after a newer one is whole on disk. Each is written under another name, then
    renamed into place.

    Raises:
        UserError: from any method, if the folder cannot be written; earlier checkpoints stay as they are.
    """

    def __init__(self, run_dir: str | Path, save_total_limit: int) -> None:
        quieten_orbax()
        self._folder = _checkpoints(run_dir)
        self._saving: int | None = None
        options = ocp.CheckpointManagerOptions(max_to_keep=save_total_limit, cleanup_tmp_directories=True)
        with self._explained():
            self._manager = ocp.CheckpointManager(self._folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def save(self, step: int, params: Tree, opt_state: Tree | None, metadata: RunMetadata) -> None:
        """Starts saving; the arrays may be donated as soon as this returns. A step that is saved already is left alone.

        If the save before this one has failed, its error is raised here.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        arrays = {"params": params} | ({} if opt_state is None else {"opt_state": opt_state})
        sums = {item: checksums(tree) for item, tree in arrays.items()}
        items = {item: ocp.args.StandardSave(tree) for item, tree in arrays.items()}
        items[METADATA] = ocp.args.JsonSave(to_stored(metadata, sums))
        self._saving = step
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Waits until the last save is on disk; raises its error if it has failed."""
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then ends the background threads."""
        with self._explained():
            self._manager.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with tensorstore_silenced():
                yield
        except Exception as error:
            if not is_from_system(error):
                raise
            for partial in self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                shutil.rmtree(partial, ignore_errors=True)
            what = "checkpoints" if self._saving is None else f"the checkpoint of step {self._saving}"
            kept = latest_step(self._folder.parent)
            safe = "" if kept is None else f"; that of step {kept} is intact, and the next run goes on from it"
            raise UserError(f"{self._folder}: {what} cannot be saved: {reason(error)}{safe}") from error


def save_imported(run_dir: str | Path, params: Tree, metadata: RunMetadata) -> None:
    """Writes a model that was trained elsewhere as step 0 of a new run, without an optimizer state.

    Raises:
        UserError: the run has checkpoints already, or the folder cannot be written.
    """
    step = latest_step(run_dir)
    if step is not None:
        raise UserError(
            f"{_checkpoints(run_dir)} holds a checkpoint of step {step} already: choose another run directory"
        )
    with Checkpointer(run_dir, save_total_limit=1) as checkpointer:
        checkpointer.save(0, params, None, metadata)


def latest_step(run_dir: str | Path) -> int | None:
    """The step of the newest checkpoint, readable or not; None if there is none."""
    return max(checkpoint_steps(run_dir), default=None)


def checkpoint_steps(run_dir: str | Path) -> list[int]:
    """The steps of all checkpoints, readable or not, ascending."""
    return _steps(_checkpoints(run_dir))


def fingerprint(run_dir: str | Path, step: int) -> str:
    """A hash of a checkpoint's parameters, made of the checksums saved with them; raises as `load_params` does."""
    sums, _ = _read_newest(run_dir, step, lambda folder: read_metadata(folder).sums["params"])
    return sha256_of_json(sums)


def load_metadata(run_dir: str | Path, step: int | None = None) -> tuple[RunMetadata, int]:
    """(metadata, step) of the checkpoint of `step`, or of the newest readable one; raises as `load_params` does."""
    return _read_newest(run_dir, step, lambda folder: read_metadata(folder).metadata)


def load_params(run_dir: str | Path, step: int | None = None) -> tuple[Tree, RunMetadata, int]:
    """(parameters as nested dicts of numpy arrays, metadata, step), read on one host without the model's config.

    It reads the checkpoint of `step` or, by default, the newest; if that is broken, it warns and reads an older one.

    Raises:
        UserError: there is no such checkpoint, or none can be read.
    """

    def read(folder: Path) -> tuple[Tree, Stored]:
        stored = read_metadata(folder)
        return read_numpy_arrays(folder / "params", stored.sums["params"]), stored

    (params, stored), step = _read_newest(run_dir, step, read)
    warn_of_unchecked(stored, _checkpoints(run_dir) / str(step))
    return params, stored.metadata, step


def restore(
    run_dir: str | Path, abstract_params: Tree, abstract_opt_state: Tree, processes: Processes = ALONE
) -> tuple[Tree, Tree | None, RunMetadata, int]:
    """(parameters, optimizer state, metadata, step) to go on from, as jax arrays sharded like the abstract trees.

    The abstract trees hold jax.ShapeDtypeStruct leaves, or arrays. The optimizer state is None for an imported model. A
    broken newest checkpoint is passed over with a warning, and renamed so that training can write that step anew. All
    `processes` must call this; if a checkpoint is broken for one of them, all pass over it.

    Raises:
        UserError: no checkpoint can be read, or an array is missing, unknown, or of another shape or dtype.
    """

    def read(folder: Path) -> tuple[dict[str, Tree], Stored]:
        stored = read_metadata(folder)
        wanted = {"params": abstract_params, "opt_state": abstract_opt_state}
        return {item: read_arrays(folder / item, wanted[item]) for item in stored.sums}, stored

    def check(found: tuple[dict[str, Tree], Stored]) -> None:
        arrays, stored = found
        for item, tree in arrays.items():
            check_bits(tree, stored.sums[item])

    (arrays, stored), step = _read_newest(run_dir, None, read, check, processes)
    if processes.index == 0:
        warn_of_unchecked(stored, _checkpoints(run_dir) / str(step))
        for broken in (other for other in _steps(_checkpoints(run_dir)) if other > step):
            set_aside(_checkpoints(run_dir) / str(broken))
    processes.share("set aside")
    return arrays["params"], arrays.get("opt_state"), stored.metadata, step


def restore_params(
    run_dir: str | Path, abstract_params: Tree, step: int | None = None, processes: Processes = ALONE
) -> tuple[Tree, int]:
    """(parameters, step) of another run to start from, read as by `restore`; nothing in that run's folder changes."""

    def read(folder: Path) -> tuple[Tree, dict[str, int]]:
        return read_arrays(folder / "params", abstract_params), read_metadata(folder).sums["params"]

    (params, _), step = _read_newest(run_dir, step, read, lambda found: check_bits(*found), processes)
    return params, step


def _checkpoints(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints"


def _steps(folder: Path) -> list[int]:
    # A checkpoint that is being written, or that a crash left half-written, has a longer name than its step.
    names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _STEP.fullmatch(name))


def _read_newest(
    run_dir: str | Path,
    step: int | None,
    read: Callable[[Path], Result],
    check: Callable[[Result], None] = lambda _: None,
    processes: Processes = ALONE,
) -> tuple[Result, int]:
    """(the result of `read`, step) for the newest checkpoint that `read` and `check` accept in all processes."""
    quieten_orbax()
    folder = _checkpoints(run_dir)
    steps = _steps(folder)
    if not steps:
        raise UserError(f"{folder} holds no checkpoint: is {run_dir} the output_dir of a run that has saved one?")
    if step is not None and step not in steps:
        raise UserError(f"{folder} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}")

    results: list[Result] = []
    complaints: dict[int, str] = {}
    damaged: dict[int, str] = {}
    while candidates := [step] if step is not None else processes.share(_steps(folder))[0]:
        candidates = [each for each in candidates if each not in complaints]
        if not candidates:
            break
        candidate = candidates[-1]
        path = folder.absolute() / str(candidate)
        # `check` is a collective, so it may begin only if all processes could read.
        broken = _complaint(lambda: check_plain_files(path), processes)  # noqa: B023 - called at once
        broken = broken or _complaint(lambda: results.append(read(path)), processes)  # noqa: B023
        broken = broken or _complaint(lambda: check(results[-1]), processes)
        if broken is None:
            if processes.index == 0:
                warn_of_broken(folder, damaged)
            return results[-1], candidate
        results.clear()
        complaints[candidate] = broken
        # A run in training removes old checkpoints. If there is a newer one by now, this one was removed, not broken.
        newest = max(processes.share(_steps(folder))[0], default=candidate)
        if step is not None or newest <= candidate or newest in complaints:
            damaged[candidate] = broken
    raise cannot_be_read(folder, steps, step, complaints)


def _complaint(work: Callable[[], None], processes: Processes) -> str | None:
    """What is wrong with the files that `work` reads, in any of the processes; all processes must call this."""
    complaint = None
    try:
        work()
    except Exception as error:
        if isinstance(error, UserError) or not is_about_files(error):
            raise
        complaint = reason(error)
    return next((each for each in processes.share(complaint) if each is not None), None)
