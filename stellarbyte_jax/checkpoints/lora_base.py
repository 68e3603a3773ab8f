"""Finds the frozen weights below a run's adapters by their run and step, and refuses weights that have changed."""

import jax
import numpy as np

from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.array_files import Tree, check_finite_weights
from stellarbyte_jax.checkpoints.checkpoint import Base, RunMetadata, fingerprint, load_params, restore_params
from stellarbyte_jax.checkpoints.needed import note_needed
from stellarbyte_jax.checkpoints.whole_model import check_base, whole_model
from stellarbyte_jax.processes.joined import ALONE, Processes


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
        check_base(here, adapters_dir)
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
    params, metadata, step = whole_model(run_dir, step, ema, load_params)
    return jax.tree.map(np.asarray, params), metadata, step
