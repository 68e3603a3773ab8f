"""Merges the adapters of a run with the weights below them, which are refused if they have changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.places import Place, is_remote, place
from stellarbyte_jax.checkpoints.adapter_trees import check_adapters, kernel_shapes, merge_adapters
from stellarbyte_jax.checkpoints.folders import checkpoint_steps
from stellarbyte_jax.checkpoints.metadata import Base, RunMetadata
from stellarbyte_jax.checkpoints.opened import fingerprint, open_params
from stellarbyte_jax.checkpoints.stored_arrays import Tree
from stellarbyte_jax.config_file import lora_config_from_dict
from stellarbyte_jax.run_folder import moved_along


def open_weights(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """(parameters of the whole model, metadata, step): arrays are read, and merged, when needed: see `open_params`."""
    return whole_model(run_dir, step, ema, open_params)


def whole_model(
    run_dir: str | Place, step: int | None, ema: bool, read: Callable[..., tuple[Tree, RunMetadata, int]]
) -> tuple[Tree, RunMetadata, int]:
    """What `read` returns, which is `open_params` or `load_params`, with adapters merged into their base."""
    params, metadata, step = read(run_dir, step, ema=ema)
    if metadata.base is None:
        return params, metadata, step
    base = base_params(metadata.base, metadata, run_dir, read)
    where = f"{run_dir}/checkpoints/{step}"
    lora = lora_config_from_dict(metadata.config["lora"], where)
    check_adapters(params, lora, kernel_shapes(base), where)
    return merge_adapters(base, params, lora), metadata, step


def base_params(
    base: Base, metadata: RunMetadata, run_dir: str | Place, read: Callable[..., tuple[Tree, RunMetadata, int]]
) -> Tree:
    """The parameters below the adapters in `run_dir`, wherever they lie now; `read` as for `whole_model`."""
    below = _found_again(base, metadata.config.get("output_dir"), place(run_dir))
    check_base(below, run_dir)
    return read(below.run_dir, below.step)[0]


def _found_again(base: Base, old_run: Any, run_dir: Place) -> Base:
    """The base with its present folder: the old one, one beside the adapters, or one that was moved with them."""
    there = place(base.run_dir)
    folders: list[Place] = [there, run_dir.parent / there.name]
    if isinstance(old_run, str) and isinstance(run_dir, Path) and not is_remote(old_run) and not is_remote(there):
        folders.append(moved_along(base.run_dir, old_run, run_dir))
    for folder in folders:
        # A folder of the right name may hold another run, so the fingerprint decides.
        if base.step in checkpoint_steps(folder) and fingerprint(folder, base.step) == base.fingerprint:
            return replace(base, run_dir=str(folder))
    return base


def check_base(base: Base, adapters_dir: str | Place) -> None:
    """Raises UserError if the checkpoint below the adapters in `adapters_dir` is gone or has changed."""
    there = checkpoint_steps(base.run_dir)
    if base.step not in there:
        steps = f"only steps {', '.join(map(str, there))}" if there else "no checkpoint"
        raise UserError(
            f"{adapters_dir} holds adapters on step {base.step} of {base.run_dir}, where there is {steps}: "
            "bring that checkpoint back"
        )
    if fingerprint(base.run_dir, base.step) != base.fingerprint:
        raise UserError(
            f"{adapters_dir} holds adapters on other weights than step {base.step} of {base.run_dir} has now: "
            "bring back the run that they were trained on"
        )
