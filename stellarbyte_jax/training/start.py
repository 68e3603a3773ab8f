"""What a run begins with: its own newest checkpoint, the weights of the run in `init_from`, or fresh ones."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import differing_fields, model_config_from_dict, run_config_from_dict
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.run_folder import check_is_run
from stellarbyte_jax.sharding import param_shardings, replicated
from stellarbyte_jax.training.checkpoint import latest_step, load_metadata, restore, restore_params
from stellarbyte_jax.training.state import TrainState, init_state

# What may change when a run goes on: none of it changes the losses.
_FREE_FIELDS = ("checkpoint.", "mesh.", "output_dir", "training.eval_steps", "training.eval_batches")


def check_start(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Refuses a config that does not fit the run in `output_dir`, or, before there is one, that in `init_from`.

    Raises:
        UserError: naming the fields that differ, or that the tokenizer does.
    """
    if latest_step(config.output_dir) is not None:
        _check_same_run(config, tokenizer)
    elif config.init_from is not None:
        _check_init_from(config, config.init_from, tokenizer)


def state_shardings(
    config: RunConfig, abstract_params: Any, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Any:
    """A TrainState of shardings: where each array lies. The optimizer's moments lie like their parameters."""
    params = param_shardings(abstract_params, mesh)
    abstract = jax.eval_shape(lambda: init_state(config.model, optimizer, config.seed))
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract.opt_state,
        params,
        transform_non_params=lambda _: replicated(mesh),
    )
    return dataclasses.replace(abstract, step=replicated(mesh), params=params, opt_state=opt_state)


def start(config: RunConfig, optimizer: optax.GradientTransformation, shardings: Any) -> tuple[TrainState, int]:
    """(the state to go on from, its step), each array made or read where it lies: no host holds the whole model."""

    def create() -> TrainState:
        return init_state(config.model, optimizer, config.seed)

    resumed = latest_step(config.output_dir) is not None
    if not resumed and config.init_from is None:
        return jax.jit(create, out_shardings=shardings)(), 0

    abstract = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        jax.eval_shape(create),
        shardings,
    )
    if resumed:
        params, opt_state, _, step = restore(config.output_dir, abstract.params, abstract.opt_state)
    else:
        assert config.init_from is not None
        (params, _), opt_state, step = restore_params(config.init_from, abstract.params), None, 0
    if opt_state is None:  # the weights of another run, or of an imported model
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(jax.device_put(jnp.asarray(step, jnp.int32), shardings.step), params, opt_state), step


def _check_same_run(config: RunConfig, tokenizer: Tokenizer) -> None:
    run_dir = config.output_dir
    metadata, _ = load_metadata(run_dir)
    if "training" in metadata.config:
        before = run_config_from_dict(metadata.config, f"{run_dir}/checkpoints")
        differing = differing_fields(before, config)
    else:  # an imported model
        differing = _differing_model(metadata.config, run_dir, config)
        if config.init_from is not None:
            differing.append(("init_from", None, config.init_from))
    differing = [difference for difference in differing if not difference[0].startswith(_FREE_FIELDS)]
    if differing:
        shown = ", ".join(f"{name} (was {a}, now {b})" for name, a, b in differing)
        raise UserError(f"{run_dir} holds a run with another config: {shown}; choose another output_dir")
    if metadata.tokenizer_files != tokenizer.files:
        raise UserError(
            f"{run_dir} holds a run with another tokenizer than {config.data.tokenizer}: choose another output_dir"
        )


def _check_init_from(config: RunConfig, run_dir: str, tokenizer: Tokenizer) -> None:
    check_is_run(Path(run_dir))
    metadata, _ = load_metadata(run_dir)
    differing = _differing_model(metadata.config, run_dir, config)
    if differing:
        shown = ", ".join(f"{name} (there {a}, here {b})" for name, a, b in differing)
        raise UserError(f"init_from {run_dir} holds another model: {shown}; leave `model` out to take it from there")
    if metadata.tokenizer_files != tokenizer.files:
        raise UserError(
            f"init_from {run_dir} has another tokenizer than data.tokenizer {config.data.tokenizer}: "
            "prepare the data with the tokenizer that the weights were trained with"
        )


def _differing_model(stored: dict[str, Any], run_dir: str, config: RunConfig) -> list[tuple[str, Any, Any]]:
    theirs = model_config_from_dict(stored["model"], f"{run_dir}/checkpoints")
    return [(f"model.{name}", a, b) for name, a, b in differing_fields(theirs, config.model)]
