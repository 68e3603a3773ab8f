"""Saves the checkpoints of a run in the background, whole or not at all, and deletes those that nothing keeps."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from stellarbyte.checkpoint_names import UNFINISHED
from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.checkpoints.array_files import Tree, orbax_path
from stellarbyte_jax.checkpoints.checksums import checksums
from stellarbyte_jax.checkpoints.file_errors import is_from_system, reason
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of, delete_whole, latest_step
from stellarbyte_jax.checkpoints.metadata import ITEMS, METADATA, RunMetadata, to_stored
from stellarbyte_jax.checkpoints.orbax_noise import quieten_orbax, tensorstore_silenced
from stellarbyte_jax.checkpoints.retention import Retention, Validations
from stellarbyte_jax.checkpoints.stored_arrays import PIECE_BYTES, SMALL_BYTES

_SECONDS_TO_CLEAR = 1.0

# A piece's axes are cut at their divisors, so an axis without small ones is left whole.
_DIVISOR = 64


class Checkpointer:
    """Writes the checkpoints of one run, in the background, and keeps those that one of the config's rules keeps.

    An older checkpoint is deleted only after a newer one is whole on disk. Each is written under another name, then
    renamed into place. validations, rolls_back: see Retention.

    Raises:
        UserError: from any method, if the folder cannot be written; earlier checkpoints stay as they are.
    """

    def __init__(
        self,
        run_dir: str | Place,
        config: CheckpointConfig,
        validations: Validations = {},  # noqa: B006 - nothing changes it
        *,
        rolls_back: bool = False,
    ) -> None:
        quieten_orbax()
        self._folder = checkpoints_of(run_dir)
        self._known = latest_step(run_dir) if isinstance(self._folder, BucketPath) else None
        self._retention = Retention(config, run_dir, validations, rolls_back=rolls_back)
        self._saving: int | None = None
        self._failure: str | None = None
        self.begin_anew()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def save(
        self,
        step: int,
        params: Tree,
        opt_state: Tree | None,
        metadata: RunMetadata,
        ema: Tree | None = None,
        pruned: Tree | None = None,
    ) -> None:
        """Starts saving; the arrays may be donated as soon as this returns. A step that is saved already is left alone.

        If the save before this one has failed, its error is raised here.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        arrays = {"params": params, "opt_state": opt_state, "ema": ema, "pruned": pruned}
        arrays = {item: tree for item, tree in arrays.items() if tree is not None}
        sums = {item: checksums(tree) for item, tree in arrays.items()}
        items = {item: ocp.args.PyTreeSave(tree, chunks(tree)) for item, tree in arrays.items()}
        items[METADATA] = ocp.args.JsonSave(to_stored(metadata, sums))
        self._saving = step
        with self._explained():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def begin_anew(self) -> None:
        """Makes a new manager of Orbax's, which knows nothing of a save that has failed."""
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._retention,
            cleanup_tmp_directories=True,
            lightweight_initialize=True,  # what it would read of the older checkpoints may be damaged
        )
        self._saving, self._failure = None, None
        with self._explained():
            self._manager = ocp.CheckpointManager(
                orbax_path(self._folder), options=options, handler_registry=_uncompressed()
            )

    def failure(self) -> str | None:
        """What was wrong with the last save, once that has ended; None if it is whole. See `begin_anew`."""
        try:
            self.wait()
        except UserError as error:
            self._failure = str(error)
        return self._failure

    def wait(self) -> None:
        """Waits until the last save is on disk; raises its error if it has failed."""
        with self._explained():
            self._manager.wait_until_finished()
        if isinstance(self._folder, BucketPath) and self._saving is not None and self._failure is None:
            self._known = self._saving

    def delete_what_nothing_keeps(self) -> None:
        """Applies the retention once more, after the last save: a validation since may have changed what is best.

        Of several processes, process 0 calls it.
        """
        self.wait()
        for step, reasons in self._retention.reasons(checkpoint_steps(self._folder.parent)).items():
            if not reasons:
                delete_whole(self._folder / str(step))

    def give_up(self) -> str:
        """Leaves a save that takes too long, from any thread: nothing half-written remains where the disk allows that.

        Returns:
            Which checkpoint stands, in words.
        """
        found: list[int | None] = [self._known]

        def clear() -> None:
            found.append(latest_step(self._folder.parent))
            for partial in self._partial():
                with suppress(UserError):  # it has become whole: then it has another name
                    delete_whole(partial)
            found.append(latest_step(self._folder.parent))

        clearing = threading.Thread(target=clear, name="give up", daemon=True)
        clearing.start()
        clearing.join(_SECONDS_TO_CLEAR)  # the disk may hang, and the process is to end
        step = next((step for step in reversed(found) if step is not None), None)
        return "no checkpoint is there" if step is None else f"the checkpoint of step {step} stands"

    def close(self) -> None:
        """Waits, then ends the background threads."""
        with self._explained():
            self._manager.close()

    def _partial(self) -> list[Path]:
        """What is there of a save that is not whole; in a bucket the next run clears it away."""
        return [] if isinstance(self._folder, BucketPath) else list(self._folder.glob(f"{self._saving}{UNFINISHED}*"))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            with tensorstore_silenced():
                yield
        except Exception as error:
            if not is_from_system(error):
                raise
            for partial in self._partial():
                shutil.rmtree(partial, ignore_errors=True)
            what = "checkpoints" if self._saving is None else f"the checkpoint of step {self._saving}"
            kept = self._known if isinstance(self._folder, BucketPath) else latest_step(self._folder.parent)
            safe = "" if kept is None else f"; that of step {kept} is intact, and the next run goes on from it"
            raise UserError(f"{self._folder}: {what} cannot be saved: {reason(error)}{safe}") from error


def _uncompressed() -> ocp.handlers.CheckpointHandlerRegistry:
    """Orbax's handlers for arrays that are written as they are.

    Weights are noise to a compressor: it saves a twelfth of the bytes, and whoever reads them has to unpack them.
    """
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for item in ITEMS:
        registry.add(item, ocp.args.PyTreeSave, ocp.PyTreeCheckpointHandler(use_compression=False))
    return registry


def chunks(tree: Tree) -> Tree:
    """Orbax's options for saving each array of a tree so that a layer of it can be read by itself.

    Arrays of three and more axes have their layers on the first.
    """
    return jax.tree.map(_chunks, tree)


def _chunks(array: Any) -> ocp.SaveArgs:
    if not isinstance(array, np.ndarray | jax.Array) or array.nbytes <= SMALL_BYTES or array.ndim < 2:
        return ocp.SaveArgs()
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape
    can_be_cut = all(size % _DIVISOR == 0 for size in shape[-2:])
    return ocp.SaveArgs(shard_axes=(0,) if array.ndim > 2 else (), chunk_byte_size=PIECE_BYTES if can_be_cut else None)
