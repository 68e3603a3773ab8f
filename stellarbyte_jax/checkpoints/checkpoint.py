"""Checkpoints of a run: parameters, optimizer state and metadata, saved as one step and read back strictly."""

from collections.abc import Callable
from typing import TypeVar

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.array_files import (
    Tree,
    check_bits,
    check_plain_files,
    is_about_files,
    quieten_orbax,
    read_arrays,
    read_numpy_arrays,
    reason,
)
from stellarbyte_jax.checkpoints.broken import cannot_be_read, set_aside, warn_of_broken, warn_of_unchecked
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of, latest_step
from stellarbyte_jax.checkpoints.imported import save_imported
from stellarbyte_jax.checkpoints.metadata import Base, GuardState, RunMetadata, Stored, read_metadata
from stellarbyte_jax.checkpoints.saving import Checkpointer
from stellarbyte_jax.checkpoints.stored_arrays import open_arrays
from stellarbyte_jax.processes.joined import ALONE, Processes

__all__ = [
    "Base",
    "Checkpointer",
    "GuardState",
    "RunMetadata",
    "checkpoint_steps",
    "fingerprint",
    "latest_step",
    "load_metadata",
    "load_params",
    "open_params",
    "restore",
    "restore_params",
    "save_imported",
]

Result = TypeVar("Result")


def fingerprint(run_dir: str | Place, step: int, *, ema: bool = False) -> str:
    """A hash of a checkpoint's parameters, made of the checksums saved with them; raises as `load_params` does.

    ema: whether to take the moving average of the parameters instead of them.
    """
    sums, _ = _read_newest(run_dir, step, lambda folder: read_metadata(folder).sums["ema" if ema else "params"])
    return sha256_of_json(sums)


def load_metadata(run_dir: str | Place, step: int | None = None) -> tuple[RunMetadata, int]:
    """(metadata, step) of the checkpoint of `step`, or of the newest readable one; raises as `load_params` does."""
    return _read_newest(run_dir, step, lambda folder: read_metadata(folder).metadata)


def load_params(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """(parameters as nested dicts of numpy arrays, metadata, step), read on one host without the model's config.

    It reads the checkpoint of `step` or, by default, the newest; if that is broken, it warns and reads an older one.
    ema: whether to read the moving average of the parameters instead of them.

    Raises:
        UserError: there is no such checkpoint, or none can be read, or it has no average.
    """
    return _load(run_dir, step, ema, read_numpy_arrays)


def open_params(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """As `load_params`, with StoredArrays in place of numpy arrays: their values are read when they are asked for.

    If those of the newest checkpoint turn out to be broken then, no older one takes its place: a UserError names the
    others.
    """

    def read(folder: Place, sums: dict[str, int]) -> Tree:
        found = int(folder.parent.name)

        def refuse(error: Exception) -> UserError:
            return cannot_be_read(checkpoints_of(run_dir), checkpoint_steps(run_dir), found, {found: reason(error)})

        return open_arrays(folder, sums, refuse)

    return _load(run_dir, step, ema, read)


def _load(
    run_dir: str | Place, step: int | None, ema: bool, read_arrays_of: Callable[[Place, dict[str, int]], Tree]
) -> tuple[Tree, RunMetadata, int]:
    item = "ema" if ema else "params"

    def read(folder: Place) -> tuple[Tree, Stored]:
        stored = read_metadata(folder)
        if item not in stored.sums:
            raise UserError(
                f"{run_dir} holds no moving average of its weights, because training.ema_decay is not set: leave --ema "
                "out"
            )
        return read_arrays_of(folder / item, stored.sums[item]), stored

    (params, stored), step = _read_newest(run_dir, step, read)
    warn_of_unchecked(stored, checkpoints_of(run_dir) / str(step))
    return params, stored.metadata, step


def restore(
    run_dir: str | Place,
    abstract_params: Tree,
    abstract_opt_state: Tree,
    processes: Processes = ALONE,
    abstract_ema: Tree | None = None,
    abstract_pruned: Tree | None = None,
) -> tuple[Tree, Tree | None, RunMetadata, int, Tree | None, Tree | None]:
    """(parameters, optimizer state, metadata, step, their average, what is pruned) to go on from.

    They are sharded like the abstract trees, which hold jax.ShapeDtypeStruct leaves, or arrays. The optimizer state is
    None for an imported model, and so are the average and what is pruned, which only some runs have. A broken newest
    checkpoint is passed over with a warning, and renamed so that training can write that step anew. All `processes`
    must call this; if a checkpoint is broken for one of them, all pass over it.

    Raises:
        UserError: no checkpoint can be read, or an array is missing, unknown, or of another shape or dtype; or what is
            pruned has been cut out since the newest that can be read.
    """
    wanted = {"params": abstract_params, "opt_state": abstract_opt_state}
    wanted |= {"ema": abstract_ema, "pruned": abstract_pruned}

    def read(folder: Place) -> tuple[dict[str, Tree], Stored]:
        stored = read_metadata(folder)
        if "pruned" in stored.sums and abstract_pruned is None:
            raise UserError(
                f"{folder} holds the model before training.prune had cut it, and the checkpoints after it cannot be "
                "read: move those away, and the run goes on from this one"
            )
        return {item: read_arrays(folder / item, wanted[item]) for item in stored.sums}, stored

    def check(found: tuple[dict[str, Tree], Stored]) -> None:
        arrays, stored = found
        for item, tree in arrays.items():
            check_bits(tree, stored.sums[item])

    (arrays, stored), step = _read_newest(run_dir, None, read, check, processes)
    if processes.index == 0:
        warn_of_unchecked(stored, checkpoints_of(run_dir) / str(step))
        for broken in (other for other in checkpoint_steps(run_dir) if other > step):
            set_aside(checkpoints_of(run_dir) / str(broken))
    processes.share("set aside")
    optional = arrays.get("ema"), arrays.get("pruned")
    return arrays["params"], arrays.get("opt_state"), stored.metadata, step, *optional


def restore_params(
    run_dir: str | Place, abstract_params: Tree, step: int | None = None, processes: Processes = ALONE
) -> tuple[Tree, int]:
    """(parameters, step) of another run to start from, read as by `restore`; nothing in that run's folder changes."""

    def read(folder: Place) -> tuple[Tree, dict[str, int]]:
        return read_arrays(folder / "params", abstract_params), read_metadata(folder).sums["params"]

    (params, _), step = _read_newest(run_dir, step, read, lambda found: check_bits(*found), processes)
    return params, step


def _read_newest(
    run_dir: str | Place,
    step: int | None,
    read: Callable[[Place], Result],
    check: Callable[[Result], None] = lambda _: None,
    processes: Processes = ALONE,
) -> tuple[Result, int]:
    """(the result of `read`, step) for the newest checkpoint that `read` and `check` accept in all processes."""
    quieten_orbax()
    folder = checkpoints_of(run_dir)
    steps = checkpoint_steps(run_dir)
    if not steps:
        raise UserError(f"{folder} holds no checkpoint: is {run_dir} the output_dir of a run that has saved one?")
    if step is not None and step not in steps:
        raise UserError(f"{folder} holds no checkpoint of step {step}, only of {', '.join(map(str, steps))}")

    results: list[Result] = []
    complaints: dict[int, str] = {}
    damaged: dict[int, str] = {}
    while candidates := [step] if step is not None else processes.share(checkpoint_steps(run_dir))[0]:
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
        newest = max(processes.share(checkpoint_steps(run_dir))[0], default=candidate)
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
