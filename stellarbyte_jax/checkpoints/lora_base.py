"""Finds the frozen weights below a run's adapters by their run and step, and refuses weights that have changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import Place, is_remote, place
from stellarbyte_jax.checkpoints.adapter_trees import check_adapters, kernel_shapes, merge_adapters
from stellarbyte_jax.checkpoints.array_files import Tree, check_finite_weights
from stellarbyte_jax.checkpoints.checkpoint import (
    Base,
    RunMetadata,
    checkpoint_steps,
    fingerprint,
    load_params,
    open_params,
    restore_params,
)
from stellarbyte_jax.checkpoints.needed import note_needed
from stellarbyte_jax.config_file import lora_config_from_dict
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.run_folder import moved_along


def restore_base(
    run_dir: str, abstract_params: Tree, known: Base | None, adapters_dir: str, processes: Processes = ALONE
) -> tuple[Tree, Base]:
    """(the base's parameters, sharded like the abstract ones, and the checkpoint that they are from).

    This is the newest checkpoint in `run_dir` or, if `known` is given, the one of that step, which is below the
    adapters in `adapters_dir`. `run_dir` is told that it is needed.

    Raises:
        UserError: the checkpoint is gone, has changed, or cannot be read.
    """
    if known is not None:
        here = Base(run_dir, known.step, known.fingerprint)  # the run may have been moved since
        _check(here, adapters_dir)
        if processes.index == 0:
            note_needed(run_dir, here.step, adapters_dir)
        return restore_params(run_dir, abstract_params, here.step, processes)[0], here
    params, step = restore_params(run_dir, abstract_params, processes=processes)
    check_finite_weights(params, f"init_from {run_dir}/checkpoints/{step}")
    if processes.index == 0:
        note_needed(run_dir, step, adapters_dir)  # before the fingerprint, which fails if it has been deleted by now
    return params, Base(run_dir, step, fingerprint(run_dir, step))


def load_weights(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """(parameters of the whole model as numpy arrays, metadata, step): adapters are merged into their base.

    For the rest it does the same as `load_params`, which returns adapters alone if the checkpoint holds only these.
    """
    params, metadata, step = _whole_model(run_dir, step, ema, load_params)
    return jax.tree.map(np.asarray, params), metadata, step


def open_weights(run_dir: str | Place, step: int | None = None, *, ema: bool = False) -> tuple[Tree, RunMetadata, int]:
    """As `load_weights`, with arrays whose values are read, and merged, when they are asked for: see `open_params`."""
    return _whole_model(run_dir, step, ema, open_params)


def _whole_model(
    run_dir: str | Place, step: int | None, ema: bool, read: Callable[..., tuple[Tree, RunMetadata, int]]
) -> tuple[Tree, RunMetadata, int]:
    params, metadata, step = read(run_dir, step, ema=ema)
    if metadata.base is None:
        return params, metadata, step
    below = _found_again(metadata.base, metadata.config.get("output_dir"), place(run_dir))
    _check(below, run_dir)
    base, *_ = read(below.run_dir, below.step)
    where = f"{run_dir}/checkpoints/{step}"
    lora = lora_config_from_dict(metadata.config["lora"], where)
    check_adapters(params, lora, kernel_shapes(base), where)
    return merge_adapters(base, params, lora), metadata, step


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


def _check(base: Base, adapters_dir: str | Place) -> None:
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
