"""Gives a run in a bucket a folder of this machine for what it appends to, and copies that into the bucket."""

import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Self

from stellarbyte.bucket_errors import BucketError
from stellarbyte.bucket_lock import NAME as LOCK
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import BucketPath, Place, place
from stellarbyte_jax.amendments import AMENDMENTS
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer
from stellarbyte_jax.processes.joined import ALONE, Processes

# What lies in a run's folder and is no file that a run that goes on appends to. Amendments are written straight into
# the bucket, since they have to be there before they have any effect.
_NOT_FETCHED = {AMENDMENTS, "checkpoints", "needed_by", "tensorboard", "profile", "broken", LOCK}

# So many saves in a row may fail before a run in a bucket ends.
_MOST_FAILED = 3


@contextmanager
def work_folder(output_dir: str, processes: Processes = ALONE) -> Iterator["WorkFolder"]:
    """The work folder of the run in `output_dir`, whose only writer process 0 is inside the block.

    Raises:
        UserError: another process writes the run, or as WorkFolder does.
    """
    run_dir = place(output_dir)
    lock = folder_lock(run_dir, doing="pretrain") if processes.index == 0 else nullcontext(lambda: None)
    with lock as check_lock, WorkFolder(run_dir, check_lock, processes) as work:
        yield work


class WorkFolder:
    """The folder in which a run keeps everything but its checkpoints.

    For a run on this machine it is the run's own, and nothing is copied. For one in a bucket it is a temporary folder:
    what the bucket has is fetched when the run goes on, and what has changed is copied there before each checkpoint,
    after each validation and at the end. So the records up to a checkpoint are in the bucket before it is whole.

    Args:
        run_dir: the run's folder.
        check_lock: raises UserError if another process writes there now.
        processes: the processes of the run.

    Raises:
        UserError: from any method, if the bucket refuses; at the end also if it cannot be reached. The temporary folder
            then stays, and the sentence names it.
    """

    def __init__(self, run_dir: Place, check_lock: Callable[[], None], processes: Processes = ALONE) -> None:
        self.run_dir, self._check_lock, self._processes = run_dir, check_lock, processes
        self._temporary: Path | None = None
        self._copied: dict[Path, tuple[int, int] | None] = {}
        self._failed = 0

    @property
    def path(self) -> Path:
        """The folder."""
        if isinstance(self.run_dir, BucketPath):
            assert self._temporary is not None
            return self._temporary / self.run_dir.name
        return self.run_dir

    def __enter__(self) -> Self:
        if isinstance(self.run_dir, BucketPath):
            self._temporary = Path(tempfile.mkdtemp(prefix="stellarbyte-"))
            self.path.mkdir()
            try:
                self._fetch(self.run_dir)
            except BaseException:
                shutil.rmtree(self._temporary, ignore_errors=True)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._temporary is None:
            return
        try:
            self._copy()
        except UserError as problem:
            where = f"the files beside the checkpoints are in {self.path}"
            raise UserError(f"{problem}; {where}" if error is None else f"{error}; {problem}; {where}") from error
        shutil.rmtree(self._temporary, ignore_errors=True)

    def copy(self, say: Callable[[str], None]) -> None:
        """Copies what has changed into the bucket; if that cannot be reached, it is told, and the next copy does it."""
        try:
            self._copy()
        except BucketError as problem:
            say(f"warning: {problem}; training goes on")

    def ready_to_save(self, checkpointer: Checkpointer, say: Callable[[str], None], *, final: bool) -> bool:
        """Whether a checkpoint can be saved: the one before is whole, and the records up to now are in the bucket.

        If the save before has failed, or the bucket cannot be reached, `say` tells so, and the run goes on: the third
        failure in a row is raised, and any if this is the `final` save. All processes must call this.
        """
        if not isinstance(self.run_dir, BucketPath):
            return True
        self._check_lock()
        unsaved = checkpointer.failure()
        unreached = None
        try:
            self._copy()
        except BucketError as problem:
            unreached = str(problem)
        found = self._processes.share([unsaved, unreached])
        problems = [problem for pair in found for problem in pair if problem is not None]
        if not problems:
            self._failed = 0
            return True
        self._failed += 1
        is_there = all(unreached is None for _, unreached in found)
        if self._failed >= _MOST_FAILED or (final and not is_there):
            raise UserError(problems[0])
        which = "present" if is_there else "next"
        say(f"warning: {problems[0]}; training goes on, and the {which} save tries again")
        checkpointer.begin_anew()
        return is_there

    def settle(self, checkpointer: Checkpointer, save: Callable[..., None]) -> None:
        """Has the last checkpoint of a run in a bucket saved again if that failed; all processes must call it."""
        if isinstance(self.run_dir, BucketPath) and any(self._processes.share(checkpointer.failure() is not None)):
            save(final=True)

    def _fetch(self, run_dir: BucketPath) -> None:
        for entry in run_dir.iterdir():
            if entry.name in _NOT_FETCHED:
                continue
            for file in [entry] if entry.is_file() else entry.files():
                here = self.path / file.key.removeprefix(run_dir.key).lstrip("/")
                here.parent.mkdir(parents=True, exist_ok=True)
                file.download(here)
                self._copied[here] = _state(here)

    def _copy(self) -> None:
        assert isinstance(self.run_dir, BucketPath) or self._temporary is None
        if not isinstance(self.run_dir, BucketPath):
            return
        self._check_lock()
        for here in sorted(self.path.rglob("*")):
            below = here.relative_to(self.path)
            if any(part.startswith(".") for part in below.parts):  # a trace that is being written
                continue
            state = _state(here)
            if state is not None and self._copied.get(here) != state:
                (self.run_dir / below.as_posix()).upload(here)
                self._copied[here] = state


def _state(file: Path) -> tuple[int, int] | None:
    """What changes with the file; None if it is none, or was removed meanwhile, which a tracker may do."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
