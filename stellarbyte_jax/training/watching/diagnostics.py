"""What the command line asks a run to record and to say. Reading the request does not need JAX."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from stellarbyte.errors import UserError
from stellarbyte.log_settings import LogSettings

# The train step's program, before and after optimisation.
HLO_FILES = ("train_step.before_optimization.hlo.txt", "train_step.after_optimization.hlo.txt")


@dataclass(frozen=True)
class Diagnostics:
    """What a run records beside its metrics, which is nothing by default, and what it says.

    profile: the first and the last step to trace, both included.
    dump_hlo: a folder for the train step's program as text.
    remarks: lines to print at the start, about the environment that the run was given.
    log: what is said, and where.
    """

    profile: tuple[int, int] | None = None
    dump_hlo: Path | None = None
    remarks: tuple[str, ...] = ()
    log: LogSettings = field(default_factory=LogSettings)

    def after(self, step: int) -> Self:
        """What is still to be recorded by a run that has begun this step, and begins again."""
        profile = self.profile if self.profile is not None and self.profile[0] > step else None
        return dataclasses.replace(self, profile=profile, dump_hlo=None, remarks=())

    def check_start(self, step: int, max_steps: int, run_dir: str | Path) -> None:
        """Refuses to trace steps that are done already; the run has done `step` of its `max_steps` steps.

        Raises:
            UserError: the first step to trace is done; the error names the steps that are left.
        """
        if self.profile is not None and self.profile[0] <= step:
            first, last = self.profile
            advice = f"begin with step {step + 1} or later" if step < max_steps else "choose another output_dir"
            raise UserError(
                f"--profile {first}:{last} begins with step {first}, but {run_dir} holds a run that has done {step}: "
                f"{advice}"
            )


def parse_profile(text: str, max_steps: int) -> tuple[int, int]:
    """Reads "10:12": steps 10, 11 and 12.

    Raises:
        UserError: the text is not such a range, or the run ends before it.
    """
    if not re.fullmatch(r"\d+:\d+", text):
        raise UserError(f"--profile {text} must be START:STOP, two steps of which both are traced, as in 10:12")
    first, last = map(int, text.split(":"))
    if first < 1:
        raise UserError(f"--profile {text} begins with step {first}: steps count from 1")
    if last < first:
        raise UserError(f"--profile {text} ends before it begins: write {last}:{first}")
    if last > max_steps:
        raise UserError(
            f"--profile {text} ends after training.max_steps {max_steps}: end with step {max_steps} at most"
        )
    return first, last


def check_dump_folder(folder: Path) -> None:
    """Makes the folder for the program's text.

    Raises:
        UserError: it is a file, holds something else, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(entry.name for entry in folder.iterdir() if entry.name not in HLO_FILES)
    except FileExistsError as error:
        raise UserError(f"--dump-hlo {folder} is a file: name a folder") from error
    except OSError as error:
        raise UserError(f"--dump-hlo {folder} cannot be written: {error.strerror}") from error
    if others:
        raise UserError(f"--dump-hlo {folder} holds other files, such as {others[0]}: name a new folder")
