"""Has Orbax make a checkpoint of arrays that `array_writer` has written already."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from stellarbyte.places import BucketPath, Place, place
from stellarbyte_jax.checkpoints.array_files import Tree, orbax_path
from stellarbyte_jax.checkpoints.array_writer import WRITTEN
from stellarbyte_jax.checkpoints.metadata import METADATA
from stellarbyte_jax.checkpoints.orbax_noise import quieten_orbax, tensorstore_silenced


def save_written(checkpoint: Place, folder: Path, params: Tree, metadata: dict[str, Any]) -> None:
    """Saves a checkpoint of the arrays that `write_arrays` has written into `folder`, which then holds them no more.

    params: arrays of their names, shapes and dtypes; no values are read. metadata: as `to_stored` gives it.
    """
    quieten_orbax()
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.PyTreeCheckpointHandler(
            type_handler_registry=ocp.type_handlers.create_type_handler_registry((np.ndarray, _TakenOver(folder)))
        ),
        **{METADATA: ocp.JsonCheckpointHandler()},
    )
    # Orbax asks the arrays for their shapes and dtypes alone, so one zero is enough.
    shapes = jax.tree.map(lambda array: np.broadcast_to(np.zeros((), array.dtype), array.shape), params)
    items = {"params": ocp.args.PyTreeSave(shapes), METADATA: ocp.args.JsonSave(metadata)}
    with tensorstore_silenced(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(orbax_path(checkpoint), ocp.args.Composite(**items))


class _TakenOver(ocp.type_handlers.NumpyHandler):
    """Gives Orbax, in place of the arrays that it is to save, those that `write_arrays` has written into `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._written = folder / WRITTEN

    async def serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[ocp.future.Future]:
        """Moves the files to where Orbax expects them; of the values it wants to know shapes and dtypes alone."""
        del values, args
        return [ocp.future.CommitFutureAwaitingContractedSignals(self._move(infos), name="arrays that are written")]

    async def _move(self, infos: Sequence[ocp.type_handlers.ParamInfo]) -> None:
        for info in infos:
            await info.await_path_creation()
        target = place(str(infos[0].parent_dir)) / WRITTEN
        if isinstance(target, BucketPath):
            for file in sorted(path for path in self._written.rglob("*") if path.is_file()):
                (target / file.relative_to(self._written).as_posix()).upload(file)
            shutil.rmtree(self._written)
        else:
            self._written.rename(target)
