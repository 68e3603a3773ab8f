"""Makes the first checkpoint of a run of a model that was trained elsewhere."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stellarbyte.checkpoint_names import UNFINISHED
from stellarbyte.errors import UserError
from stellarbyte.journal import Journal
from stellarbyte.places import BucketPath, Place, place
from stellarbyte_jax.checkpoints.array_writer import write_arrays
from stellarbyte_jax.checkpoints.folders import checkpoints_of, latest_step
from stellarbyte_jax.checkpoints.metadata import RunMetadata, to_stored
from stellarbyte_jax.checkpoints.stored_arrays import Tree


def save_imported(
    run_dir: str | Place,
    params: Tree,
    metadata: RunMetadata,
    progress: Callable[[int, int], None] = lambda *_: None,
    journal: Journal | None = None,
) -> None:
    """Writes a model as step 0 of a new run, without an optimizer state; its arrays are read part by part.

    params, progress, journal: as `write_arrays` takes them.

    Raises:
        UserError: the run has checkpoints already.
        OSError: the disk is full, or the folder cannot be written; with a journal, what is done stays.
    """
    step = latest_step(run_dir)
    if step is not None:
        raise UserError(
            f"{checkpoints_of(run_dir)} holds a checkpoint of step {step} already: choose another run directory"
        )
    with _arrays_of(place(run_dir), is_kept=journal is not None) as folder:
        sums = write_arrays(folder, params, progress, journal)
        # JAX and Orbax take a second to import, in which whoever hashes the files that are read goes on.
        from stellarbyte_jax.checkpoints.taken_over import save_written

        save_written(checkpoints_of(run_dir) / "0", folder, params, to_stored(metadata, {"params": sums}))


@contextmanager
def _arrays_of(run_dir: Path | BucketPath, *, is_kept: bool) -> Iterator[Path]:
    """A folder for the arrays until Orbax takes them over, on the disk where they are to be if that is one of ours."""
    if isinstance(run_dir, BucketPath):
        with tempfile.TemporaryDirectory(prefix="stellarbyte-") as temporary:
            yield Path(temporary)
        return
    folder = run_dir / ".arrays"
    folder.mkdir(parents=True, exist_ok=True)
    for partial in (run_dir / checkpoints_of(run_dir).name).glob(f"0{UNFINISHED}*"):  # of a process that was killed
        shutil.rmtree(partial)
    try:
        yield folder
    except BaseException:
        if not is_kept:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder)
