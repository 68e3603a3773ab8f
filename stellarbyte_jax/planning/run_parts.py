"""The parts of a run that was amended, each with its config; a run by one config has one part. It needs no JAX."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stellarbyte.errors import UserError
from stellarbyte_jax.amendments import AMENDMENTS, read_amendments
from stellarbyte_jax.checkpoints.folders import latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import load_run_config, run_config_from_dict
from stellarbyte_jax.run_folder import model_files


class Part(NamedTuple):
    """The steps after the first `start`, which have this config; `changes` tells what differs from the part before."""

    start: int
    config: RunConfig
    changes: str = ""


def parts_of(path: Path, overrides: Sequence[str]) -> list[Part]:
    """The parts of a config's run, which is one, or of the run in a folder: those that it has had and will have.

    Overrides of a run's config make a part after the newest checkpoint, as `pretrain --amend` would.

    Raises:
        UserError: the config, or the run's record of its amendments, cannot be read.
    """
    if not path.is_dir():
        return [Part(0, load_run_config(path, overrides))]
    file, _ = model_files(path)
    if not file.is_file():
        raise UserError(f"{path} is a folder without {file.name}: name a run that has been trained, or a config")
    amendments = read_amendments(path)
    configs = [*(amendment.before for amendment in amendments[:1]), *(each.config for each in amendments)]
    known = [run_config_from_dict(config, f"{path}/{AMENDMENTS}") for config in configs]
    known = known or [load_run_config(file)]
    starts, changes = [0, *(each.step for each in amendments)], ["", *(each.told for each in amendments)]
    parts = [Part(*part) for part in zip(starts, known, changes, strict=True)]
    if overrides:
        parts.append(Part(latest_step(path) or 0, load_run_config(file, overrides), f"by {' '.join(overrides)}"))
    last_at = {part.start: part for part in parts}  # of several amendments after one step, the last one counts
    return list(last_at.values())


def part_of(parts: Sequence[Part], step: int) -> Part:
    """The part that holds a step, counted from 1."""
    return next((part for part in reversed(parts) if part.start < step), parts[0])
