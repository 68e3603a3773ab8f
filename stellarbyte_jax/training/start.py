"""Makes the state that a run starts with: its newest checkpoint, weights of the run in `init_from`, or fresh ones."""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of
from stellarbyte_jax.amendments import read_amendments
from stellarbyte_jax.checkpoints.adapter_trees import split_adapters
from stellarbyte_jax.checkpoints.array_files import check_finite_weights
from stellarbyte_jax.checkpoints.checkpoint import (
    Base,
    GuardState,
    RunMetadata,
    latest_step,
    restore,
    restore_params,
)
from stellarbyte_jax.checkpoints.lora_base import restore_base
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.data.agreement import check_described
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.sharding import Layout, param_shardings
from stellarbyte_jax.training.loss_spike import SpikeRule
from stellarbyte_jax.training.optimizer_state import opt_state_axes
from stellarbyte_jax.training.param_traits import trained_params
from stellarbyte_jax.training.same_run import GoingOn, check_init_from, check_same_run
from stellarbyte_jax.training.state import Params, TrainState, init_params, run_prune_state, run_state
from stellarbyte_jax.training.teacher import Teacher


class Start(NamedTuple):
    """The state to go on from and its step; for adapters also the frozen weights below, and their checkpoint.

    metadata: that of the run's own checkpoint, if the run goes on. taught_by: the weights of the teacher, if there is
    one; teacher: their checkpoint.
    """

    state: TrainState
    step: int
    frozen: Params
    base: Base | None
    metadata: RunMetadata | None
    taught_by: Params
    teacher: Base | None


def identity(config: RunConfig, tokenizer: Tokenizer, data: DataIdentity, *, amend: bool = False) -> dict[str, Any]:
    """The fields that must be equal in all processes of a run, for Processes.compare."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")}
    return {
        **to_dict(config),
        "sha256 of the tokenizer": tokenizer.sha256,
        "sha256 of the token shards' manifest": data.sha256,
        **{f"sha256 of the task {path}": sha256_of(Path(path)) for path in config.training.eval_tasks},
        "version of": versions,
        f"newest checkpoint in {config.output_dir}": latest_step(config.output_dir),
        "--amend": amend,
    }


def check_start(
    config: RunConfig, tokenizer: Tokenizer, recipe: Recipe, data: DataIdentity, *, amend: bool = False
) -> GoingOn:
    """Refuses a config that does not fit the run in `output_dir`, or that in `init_from` if its weights are needed.

    `recipe` and `data` are those of the token shards. amend: whether the config of a run that goes on may change.

    Returns:
        How the run goes on; of a new one it has only amendments that an earlier run has left in the folder.

    Raises:
        UserError: fields, the tokenizer or the data differ; the error names them.
    """
    goes_on = latest_step(config.output_dir) is not None
    # The checkpoint of a run that goes on identifies its data; the sources may have grown since they were prepared.
    check_described(config.data, recipe, with_sources=not goes_on)
    going_on = GoingOn(() if goes_on else read_amendments(config.output_dir))
    if goes_on:
        going_on = check_same_run(config, tokenizer, data, amend=amend)
        if config.lora is None:
            return going_on
    elif amend:
        raise UserError(
            f"--amend changes a run that goes on, and output_dir {config.output_dir} holds no checkpoint of one: name "
            "the run's own output_dir, or leave --amend out to begin a new run"
        )
    if config.init_from is not None:
        check_init_from(config, config.init_from, tokenizer)
    return going_on


def state_shardings(
    config: RunConfig, abstract_params: nnx.State, optimizer: optax.GradientTransformation, layout: Layout
) -> tuple[Any, Params]:
    """(a TrainState with a sharding for each array, the shardings of the frozen weights)."""
    params = param_shardings(abstract_params, layout)
    frozen, adapters = split_adapters(params)
    if config.lora is None:
        frozen = {}
    else:
        params = adapters
    abstract = jax.eval_shape(lambda: run_state(config, optimizer))
    axes = opt_state_axes(optimizer, trained_params(abstract_params, config.lora))
    opt_state = jax.tree.map(lambda axes: layout.sharding(*axes.names), axes)
    return dataclasses.replace(
        abstract,
        step=layout.sharding(),
        params=params,
        opt_state=opt_state,
        good=layout.sharding(),
        ema=None if abstract.ema is None else params,
        recent_losses=None if abstract.recent_losses is None else layout.sharding(),
        pruned=jax.tree.map(lambda _: layout.sharding(), abstract.pruned),
    ), frozen


def start(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    shardings: Any,
    frozen_shardings: Params,
    processes: Processes = ALONE,
    teacher: Teacher | None = None,
) -> Start:
    """The start of the run. Each array is made or read on its own devices, so that no host holds the whole model.

    Raises:
        UserError: a checkpoint that is needed is broken, gone, changed, or of another shape.
    """

    def create() -> TrainState:
        return run_state(config, optimizer)

    abstract = placed(jax.eval_shape(create), shardings)
    metadata, opt_state, ema, pruned, step = None, None, None, None, 0
    if latest_step(config.output_dir) is not None:
        found = restore(
            config.output_dir, abstract.params, abstract.opt_state, processes, abstract.ema, abstract.pruned
        )
        params, opt_state, metadata, step = found.params, found.opt_state, found.metadata, found.step
        ema, pruned = found.ema, found.pruned
    elif config.init_from is not None and config.lora is None:
        params, its_step = restore_params(config.init_from, abstract.params, processes=processes)
        check_finite_weights(params, f"init_from {config.init_from}/checkpoints/{its_step}")
    else:
        # Under jit, so that each device makes its own part.
        params = jax.jit(lambda: create().params, out_shardings=shardings.params)()
    if opt_state is None:  # new parameters, or those of an imported model
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    if ema is None and shardings.ema is not None:  # a copy: the train step is given each array for good
        ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)(params)
    if pruned is None:
        pruned = jax.device_put(run_prune_state(config), shardings.pruned)
    done = jax.device_put(jnp.asarray(step, jnp.int32), shardings.step)
    guard, spikes = GuardState() if metadata is None else metadata.guard, SpikeRule.of(config.training)
    recent = None if spikes is None else jax.device_put(spikes.first(guard.recent_losses), shardings.recent_losses)
    state = TrainState(done, params, opt_state, jax.device_put(jnp.asarray(True), shardings.good), ema, recent, pruned)
    frozen: Params = {}
    base = None
    if config.lora is not None:
        assert config.init_from is not None
        abstract_base = placed(jax.eval_shape(lambda: init_params(config.model, config.seed)), frozen_shardings)
        known = None if metadata is None else metadata.base
        frozen, base = restore_base(config.init_from, abstract_base, known, config.output_dir, processes)
    if teacher is None:
        return Start(state, step, frozen, base, metadata, {}, None)
    taught_by = teacher.weights(config.output_dir, processes)
    return Start(state, step, frozen, base, metadata, taught_by, teacher.checkpoint)


def placed(abstract: Any, shardings: Any) -> Any:
    """The abstract arrays with their shardings, which come as a tree like theirs."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), abstract, shardings
    )
