"""Opens a checkpoint on one host without JAX, which takes a second to import: its metadata, and weights to be read."""

from collections.abc import Callable

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.broken import cannot_be_read, warn_of_unchecked
from stellarbyte_jax.checkpoints.file_errors import reason
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of
from stellarbyte_jax.checkpoints.metadata import RunMetadata, Stored, read_metadata
from stellarbyte_jax.checkpoints.newest import read_newest
from stellarbyte_jax.checkpoints.stored_arrays import Tree, open_arrays


def fingerprint(run_dir: str | Place, step: int, *, ema: bool = False) -> str:
    """A hash of a checkpoint's parameters, made of the checksums saved with them; raises as `open_params` does.

    ema: whether to take the moving average of the parameters instead of them.
    """
    sums, _ = read_newest(run_dir, step, lambda folder: read_metadata(folder).sums["ema" if ema else "params"])
    return sha256_of_json(sums)


def load_metadata(run_dir: str | Place, step: int | None = None) -> tuple[RunMetadata, int]:
    """(metadata, step) of the checkpoint of `step`, or of the newest readable one; raises as `open_params` does."""
    return read_newest(run_dir, step, lambda folder: read_metadata(folder).metadata)


def open_params(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """As `checkpoint.load_params`, with StoredArrays in place of numpy arrays: their values are read when needed.

    If those of the newest checkpoint turn out to be broken then, no older one takes its place: a UserError names the
    others.
    """

    def read(folder: Place, sums: dict[str, int]) -> Tree:
        found = int(folder.parent.name)

        def refuse(error: Exception) -> UserError:
            return cannot_be_read(checkpoints_of(run_dir), checkpoint_steps(run_dir), found, {found: reason(error)})

        return open_arrays(folder, sums, refuse)

    return load_item(run_dir, step, ema, read)


def load_item(
    run_dir: str | Place, step: int | None, ema: bool, read_arrays_of: Callable[[Place, dict[str, int]], Tree]
) -> tuple[Tree, RunMetadata, int]:
    """What `load_params` and `open_params` return; `read_arrays_of` takes an item's folder and its checksums."""
    item = "ema" if ema else "params"

    def read(folder: Place) -> tuple[Tree, Stored]:
        stored = read_metadata(folder)
        if item not in stored.sums:
            raise UserError(
                f"{run_dir} holds no moving average of its weights, because training.ema_decay is not set: leave --ema "
                "out"
            )
        return read_arrays_of(folder / item, stored.sums[item]), stored

    (params, stored), step = read_newest(run_dir, step, read)
    warn_of_unchecked(stored, checkpoints_of(run_dir) / str(step))
    return params, stored.metadata, step
