"""Cuts out of a run's model what it has pruned in training, and knows a run that has done so."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_metadata
from stellarbyte_jax.checkpoints.metadata import CUT_FIELDS
from stellarbyte_jax.config import ByteConfig, PruneConfig, RunConfig
from stellarbyte_jax.config_file import model_config_from_dict, save_config, to_dict
from stellarbyte_jax.run_folder import MODEL
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.adafactor import AdafactorState
from stellarbyte_jax.training.axis_masks import narrowed
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.state import TrainState


def as_saved(config: RunConfig, layout: Layout) -> RunConfig:
    """The run's config with the model of its newest checkpoint: a smaller one without training.prune, once it is cut.

    config: the run's config as the user gives it, with the model as it was at first. layout: where its arrays lie.

    Raises:
        UserError: the smaller model will not divide among the devices.
    """
    if config.training.prune is None:
        return config
    _check_can_be_placed(config.training.prune, layout)
    if latest_step(config.output_dir) is None:
        return config
    metadata, step = load_metadata(config.output_dir)
    if metadata.uncut is None:
        return config
    return _after(config, model_config_from_dict(metadata.model, f"{config.output_dir}/checkpoints/{step}"))


def cut(config: RunConfig, rule: GradualPruning | None, state: TrainState) -> tuple[RunConfig, TrainState]:
    """(config, state) of the run without what it has pruned: parameters, their average and the optimizer's state.

    Channels go from all arrays. Heads that are pruned stay in them as zeros, as `pruned_heads` has it.
    """
    assert rule is not None and state.pruned is not None
    kept = {kind: np.asarray(values) for kind, values in jax.device_get(state.pruned.kept).items()}
    model = config.model
    if "heads" in kept:
        gone = tuple(tuple(np.flatnonzero(~kept_N).tolist()) for kept_N in kept["heads"])
        model = dataclasses.replace(model, pruned_heads=gone if any(gone) else None)
    if "channels" in kept:
        model = dataclasses.replace(model, intermediate_size=tuple(kept["channels"].sum(axis=1).tolist()))
        state = _narrowed(rule, state, kept["channels"])
    return _after(config, model), dataclasses.replace(state, pruned=None)


def uncut_fields(config: RunConfig, now: RunConfig) -> dict[str, Any] | None:
    """What a checkpoint has to know of the model before the cut, for the config that the run goes on by."""
    if config.training.prune is None or now.training.prune is not None:
        return None
    return {name: value for name, value in to_dict(config.model).items() if name in CUT_FIELDS}


def save_cut_model(config: RunConfig, now: RunConfig, folder: Path) -> None:
    """Writes the smaller model's config beside that of the run, for `init_from`; removes one that holds no longer."""
    if config.training.prune is None:
        return
    if now.training.prune is None:
        save_config(now.model, folder / MODEL)
    else:
        (folder / MODEL).unlink(missing_ok=True)


def _check_can_be_placed(prune: PruneConfig, layout: Layout) -> None:
    parts = layout.parts("feed_forward")
    if prune.keep_channels is not None and prune.multiple % parts:
        names = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in layout.mesh_axes("feed_forward"))
        raise UserError(
            f"training.prune.multiple {prune.multiple} is no multiple of {names}, among which the channels that "
            f"are left are shared out: set {parts}, or a multiple of it"
        )


def _after(config: RunConfig, model: ByteConfig) -> RunConfig:
    training = dataclasses.replace(config.training, prune=None)
    return dataclasses.replace(config, model=model, training=training)


def _narrowed(rule: GradualPruning, state: TrainState, kept_LF: np.ndarray) -> TrainState:
    @jax.jit
    def narrow(state: TrainState) -> TrainState:
        def of(tree: Any, axes: Any) -> Any:
            return narrowed(tree, axes, "feed_forward", kept_LF)

        params, opt_state = of(state.params, rule.params_axes), of(state.opt_state, rule.opt_state_axes)
        ema = None if state.ema is None else of(state.ema, rule.params_axes)
        share = kept_LF.sum(axis=1).max() / kept_LF.shape[1]
        opt_state = jax.tree.map(
            lambda node: node.without_zeros(rule.params_axes, "feed_forward", share) if _is_adafactor(node) else node,
            opt_state,
            is_leaf=_is_adafactor,
        )
        return dataclasses.replace(state, params=params, opt_state=opt_state, ema=ema)

    return narrow(state)


def _is_adafactor(node: Any) -> bool:
    return isinstance(node, AdafactorState)
