"""What a run's folder looks like from outside, for options such as `init_from` that name one."""

import shlex
from pathlib import Path

from stellarbyte.errors import UserError


def check_is_run(folder: Path, option: str) -> None:
    """Refuses what is no run's folder, such as a Hugging Face model's; raises UserError that names the option."""
    if (folder / "checkpoints").is_dir():
        return
    if (folder / "config.json").is_file():
        command = shlex.join(["stellarbyte-convert", "from-hf", str(folder), f"{folder}-run"])
        raise UserError(
            f"{option} {folder} is a Hugging Face folder: make a run of it with `{command}`, and name {folder}-run"
        )
    raise UserError(f"{option} {folder} holds no checkpoints: name the output_dir of a run that has saved one")


def model_files(folder: Path) -> tuple[Path, Path]:
    """(the whole config of a trained run, the model's config of an imported or pruned one), of which one is there."""
    return folder / "config.yaml", folder / "model.yaml"
