"""Checks a run's folder that a config or a command names, and finds folders that were moved together with a run."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.places import Place, is_remote

MODEL = "model.yaml"


def check_is_run(folder: Place, option: str) -> None:
    """Raises a UserError that names the option if the folder is not a run's, such as a Hugging Face model's."""
    if (folder / "checkpoints").is_dir():
        return
    if (folder / "config.json").is_file():
        command = shlex.join(["stellarbyte", "convert", "from-hf", str(folder), f"{folder}-run"])
        raise UserError(
            f"{option} {folder} is a Hugging Face folder: make a run of it with `{command}`, and name {folder}-run"
        )
    raise UserError(f"{option} {folder} holds no checkpoints: name the output_dir of a run that has saved one")


def moved_along(path: str | Path, old_run: str | Path, run: Path) -> Path:
    """The new place of `path` if it was moved together with the run that was in `old_run` and is now in `run`."""
    return Path(os.path.normpath(run / os.path.relpath(path, old_run)))


def check_not_moved(config_file: Path, output_dir: str, folders: Mapping[str, str]) -> None:
    """Refuses the config in the folder of a run that was moved: its output_dir would begin a new run elsewhere.

    folders: field -> path of the other folders that the config names; they may have been moved together with the run.

    Raises:
        UserError: the run was moved; the error gives the command that goes on with it.
    """
    here = config_file.parent
    if (
        not (here / "checkpoints").is_dir()
        or config_file.name != "config.yaml"
        or is_remote(output_dir)
        or Path(output_dir).exists()
    ):
        return
    command = ["stellarbyte", "pretrain", str(config_file), "--output_dir", str(here)]
    for field, folder in folders.items():
        moved = moved_along(folder, output_dir, here)
        if not is_remote(folder) and not Path(folder).exists() and moved.exists():
            command += [f"--{field}", str(moved)]
    raise UserError(
        f"{config_file} belongs to a run that was moved here from output_dir {output_dir}: go on with it by "
        f"`{shlex.join(command)}`, or name a new output_dir"
    )


def model_files(folder: Place) -> tuple[Place, Place]:
    """(the path of a trained run's whole config, the path of the model's config of an imported or pruned run).

    A run has one of the two. One that has pruned its model while it trained has both: the second is then the model that
    it has, and the first has the model with which it began.
    """
    return folder / "config.yaml", folder / MODEL
