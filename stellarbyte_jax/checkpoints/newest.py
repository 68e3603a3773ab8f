"""Finds the newest checkpoint of a run that all its processes can read."""

from collections.abc import Callable
from typing import TypeVar

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.broken import cannot_be_read, warn_of_broken
from stellarbyte_jax.checkpoints.file_errors import check_plain_files, is_about_files, reason
from stellarbyte_jax.checkpoints.folders import checkpoint_steps, checkpoints_of
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.run_folder import check_is_run

Result = TypeVar("Result")


def read_newest(
    run_dir: str | Place,
    step: int | None,
    read: Callable[[Place], Result],
    check: Callable[[Result], None] = lambda _: None,
    processes: Processes = ALONE,
) -> tuple[Result, int]:
    """(the result of `read`, step) for the newest checkpoint that `read` and `check` accept in all processes."""
    folder = checkpoints_of(run_dir)
    steps = checkpoint_steps(run_dir)
    if not steps:
        if not folder.is_dir() and (folder.parent / "config.json").is_file():
            check_is_run(folder.parent, "RUN_DIR")
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
