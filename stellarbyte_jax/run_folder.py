"""What a run's folder looks like from outside, for a config that names one in `init_from`."""

import shlex
from pathlib import Path

from stellarbyte_jax.errors import UserError


def check_is_run(folder: Path) -> None:
    """Refuses what is no run's folder, such as a Hugging Face model's; raises UserError."""
    if (folder / "checkpoints").is_dir():
        return
    if (folder / "config.json").is_file():
        command = shlex.join(["stellarbyte-convert", "from-hf", str(folder), f"{folder}-run"])
        raise UserError(
            f"init_from {folder} is a Hugging Face folder: make a run of it with `{command}`, and name {folder}-run"
        )
    raise UserError(f"init_from {folder} holds no checkpoints: name the output_dir of a run that has saved one")


def model_files(folder: Path) -> tuple[Path, Path]:
    """(the whole config of a trained run, the model's config of an imported or pruned one), of which one is there."""
    return folder / "config.yaml", folder / "model.yaml"
