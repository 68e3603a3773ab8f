"""Checkpoints of a run: parameters, optimizer state and metadata, saved as one step and read back strictly."""

from typing import NamedTuple

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.array_files import Tree, check_bits, read_arrays, read_numpy_arrays
from stellarbyte_jax.checkpoints.broken import set_aside, warn_of_unchecked
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of, latest_step
from stellarbyte_jax.checkpoints.imported import save_imported
from stellarbyte_jax.checkpoints.metadata import Base, GuardState, RunMetadata, Stored, read_metadata
from stellarbyte_jax.checkpoints.newest import read_newest
from stellarbyte_jax.checkpoints.opened import fingerprint, load_item, load_metadata, open_params
from stellarbyte_jax.checkpoints.saving import Checkpointer
from stellarbyte_jax.processes.joined import ALONE, Processes

__all__ = [
    "Base",
    "Checkpointer",
    "GuardState",
    "Restored",
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


class Restored(NamedTuple):
    """What a run goes on from.

    opt_state: None for an imported model. ema, pruned: the average of the parameters, and what is pruned; only some
    runs have them.
    """

    params: Tree
    opt_state: Tree | None
    metadata: RunMetadata
    step: int
    ema: Tree | None
    pruned: Tree | None


def load_params(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """(parameters as nested dicts of numpy arrays, metadata, step), read on one host without the model's config.

    It reads the checkpoint of `step` or, by default, the newest; if that is broken, it warns and reads an older one.
    ema: whether to read the moving average of the parameters instead of them.

    Raises:
        UserError: there is no such checkpoint, or none can be read, or it has no average.
    """
    return load_item(run_dir, step, ema, read_numpy_arrays)


def restore(
    run_dir: str | Place,
    abstract_params: Tree,
    abstract_opt_state: Tree,
    processes: Processes = ALONE,
    abstract_ema: Tree | None = None,
    abstract_pruned: Tree | None = None,
) -> Restored:
    """What a run goes on from, sharded like the abstract trees, which hold jax.ShapeDtypeStruct leaves, or arrays.

    A broken newest checkpoint is passed over with a warning, and renamed so that training can write that step anew. All
    `processes` must call this; if a checkpoint is broken for one of them, all pass over it.

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

    (arrays, stored), step = read_newest(run_dir, None, read, check, processes)
    if processes.index == 0:
        warn_of_unchecked(stored, checkpoints_of(run_dir) / str(step))
        for broken in (other for other in checkpoint_steps(run_dir) if other > step):
            set_aside(checkpoints_of(run_dir) / str(broken))
    processes.share("set aside")
    ema, pruned = arrays.get("ema"), arrays.get("pruned")
    return Restored(arrays["params"], arrays.get("opt_state"), stored.metadata, step, ema, pruned)


def restore_params(
    run_dir: str | Place, abstract_params: Tree, step: int | None = None, processes: Processes = ALONE
) -> tuple[Tree, int]:
    """(parameters, step) of another run to start from, read as by `restore`; nothing in that run's folder changes."""

    def read(folder: Place) -> tuple[Tree, dict[str, int]]:
        return read_arrays(folder / "params", abstract_params), read_metadata(folder).sums["params"]

    (params, _), step = read_newest(run_dir, step, read, lambda found: check_bits(*found), processes)
    return params, step
