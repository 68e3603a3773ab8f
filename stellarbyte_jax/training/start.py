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
from stellarbyte_jax.checkpoints.adapter_trees import split_adapters
from stellarbyte_jax.checkpoints.array_files import check_finite_weights
from stellarbyte_jax.checkpoints.checkpoint import (
    Base,
    GuardState,
    RunMetadata,
    latest_step,
    load_metadata,
    restore,
    restore_params,
)
from stellarbyte_jax.checkpoints.lora_base import restore_base
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import (
    differing_fields,
    lora_config_from_dict,
    model_config_from_dict,
    run_config_from_dict,
    to_dict,
)
from stellarbyte_jax.data.agreement import check_described
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.run_folder import check_is_run
from stellarbyte_jax.sharding import Layout, param_shardings
from stellarbyte_jax.training.loss_spike import SpikeRule
from stellarbyte_jax.training.optimizer_state import opt_state_axes
from stellarbyte_jax.training.param_traits import trained_params
from stellarbyte_jax.training.state import Params, TrainState, init_params, run_state

# Fields that may change when a run goes on. None of them changes the losses, but for steps that are not applied or come
# after the end: the data's content is compared without these fields.
_FREE_FIELDS = (
    "checkpoint.",
    "data.chat_template",
    "data.ledger",
    "data.on_bad_record",
    "data.shards",
    "data.tokenizer",
    "distributed.",
    "mesh.",
    "output_dir",
    "training.early_stopping",
    "training.eval_steps",
    "training.eval_batches",
    "training.log_norms",
    "training.max_skipped_in_a_row",
    "training.on_not_finite",
    "training.project",
    "training.remat",
    "training.report_to",
)


class Start(NamedTuple):
    """The state to go on from and its step; for adapters also the frozen weights below, and their checkpoint.

    guard: what the run remembers of steps that were not applied.
    """

    state: TrainState
    step: int
    frozen: Params
    base: Base | None
    guard: GuardState


def identity(config: RunConfig, tokenizer: Tokenizer, data: DataIdentity) -> dict[str, Any]:
    """The fields that must be equal in all processes of a run, for Processes.compare."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")}
    return {
        **to_dict(config),
        "sha256 of the tokenizer": tokenizer.sha256,
        "sha256 of the token shards' manifest": data.sha256,
        "version of": versions,
        f"newest checkpoint in {config.output_dir}": latest_step(config.output_dir),
    }


def check_start(config: RunConfig, tokenizer: Tokenizer, recipe: Recipe, data: DataIdentity) -> None:
    """Refuses a config that does not fit the run in `output_dir`, or that in `init_from` if its weights are needed.

    `recipe` and `data` are those of the token shards.

    Raises:
        UserError: fields, the tokenizer or the data differ; the error names them.
    """
    goes_on = latest_step(config.output_dir) is not None
    # The checkpoint of a run that goes on identifies its data; the sources may have grown since they were prepared.
    check_described(config.data, recipe, with_sources=not goes_on)
    if goes_on:
        check_same_run(config, tokenizer, data)
        if config.lora is None:
            return
    if config.init_from is not None:
        check_init_from(config, config.init_from, tokenizer)


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
    ), frozen


def start(
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    shardings: Any,
    frozen_shardings: Params,
    processes: Processes = ALONE,
) -> Start:
    """The start of the run. Each array is made or read on its own devices, so that no host holds the whole model.

    Raises:
        UserError: a checkpoint that is needed is broken, gone, changed, or of another shape.
    """

    def create() -> TrainState:
        return run_state(config, optimizer)

    abstract = placed(jax.eval_shape(create), shardings)
    metadata, opt_state, ema, step = None, None, None, 0
    if latest_step(config.output_dir) is not None:
        params, opt_state, metadata, step, ema = restore(
            config.output_dir, abstract.params, abstract.opt_state, processes, abstract.ema
        )
    elif config.init_from is not None and config.lora is None:
        params, found = restore_params(config.init_from, abstract.params, processes=processes)
        check_finite_weights(params, f"init_from {config.init_from}/checkpoints/{found}")
    else:
        # Under jit, so that each device makes its own part.
        params = jax.jit(lambda: create().params, out_shardings=shardings.params)()
    if opt_state is None:  # new parameters, or those of an imported model
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    if ema is None and shardings.ema is not None:  # a copy: the train step is given each array for good
        ema = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings.ema)(params)
    done = jax.device_put(jnp.asarray(step, jnp.int32), shardings.step)
    guard, spikes = GuardState() if metadata is None else metadata.guard, SpikeRule.of(config.training)
    recent = None if spikes is None else jax.device_put(spikes.first(guard.recent_losses), shardings.recent_losses)
    state = TrainState(done, params, opt_state, jax.device_put(jnp.asarray(True), shardings.good), ema, recent)
    if config.lora is None:
        return Start(state, step, {}, None, guard)

    assert config.init_from is not None
    abstract_base = placed(jax.eval_shape(lambda: init_params(config.model, config.seed)), frozen_shardings)
    known = None if metadata is None else metadata.base
    frozen, base = restore_base(config.init_from, abstract_base, known, config.output_dir, processes)
    return Start(state, step, frozen, base, guard)


def placed(abstract: Any, shardings: Any) -> Any:
    """The abstract arrays with their shardings, which come as a tree like theirs."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), abstract, shardings
    )


def check_same_run(config: RunConfig, tokenizer: Tokenizer, data: DataIdentity) -> None:
    """Refuses a config, tokenizer or data that are not those of the run in `output_dir`; raises UserError."""
    run_dir = config.output_dir
    metadata, newest = load_metadata(run_dir)
    if "training" in metadata.config:
        before = run_config_from_dict(metadata.config, f"{run_dir}/checkpoints")
        differing = differing_fields(before, config)
    else:  # an imported model
        differing = _differing_model(metadata, run_dir, config)
        lora = metadata.config.get("lora")
        before_lora = None if lora is None else lora_config_from_dict(lora, f"{run_dir}/checkpoints")
        if before_lora != config.lora:
            differing.append(("lora", lora, None if config.lora is None else to_dict(config.lora)))
        if config.init_from is not None:
            differing.append(("init_from", None, config.init_from))
    differing = [
        (name, was, now)
        for name, was, now in differing
        if not name.startswith(_FREE_FIELDS) and not _says_where(name, was, now, metadata, config)
    ]
    if differing:
        shown = ", ".join(f"{name} (was {a}, now {b})" for name, a, b in differing)
        raise UserError(
            f"{run_dir} holds a run with another config: {shown}; a run goes on only as it began, since its learning "
            "rate and its batches follow from these. Give them their old values; or choose another output_dir, and "
            f"init_from {run_dir} to train on from its weights. What may change is the mesh, the processes, remat, and "
            "when it validates and saves"
        )
    if newest > config.training.max_steps:
        raise UserError(
            f"{run_dir} holds a checkpoint of step {newest}, where the run has {config.training.max_steps} steps: "
            "no run wrote it under that name, so move it away"
        )
    mixed = config.data.weights is not None
    changed = None if metadata.data is None else data.differences(metadata.data, mixed=mixed)
    if changed is not None:
        raise UserError(
            f"{run_dir} holds a run on other data than data.shards {config.data.shards} has now ({changed}): name the "
            "run's own shards with --data.shards, or choose another output_dir"
        )
    if Tokenizer(metadata.tokenizer_files, f"of {run_dir}").sha256 != tokenizer.sha256:
        raise UserError(
            f"{run_dir} holds a run with another tokenizer than {config.data.tokenizer}: choose another output_dir"
        )


def _says_where(name: str, was: Any, now: Any, metadata: RunMetadata, config: RunConfig) -> bool:
    """Whether a field only says where something lies. Its content is then compared in another way."""
    if name.startswith("data.sources"):
        if name.endswith(".weight") or any("weight" in source and source["weight"] for source in _sources(was, now)):
            return False
        return metadata.data is not None or name.endswith(".path")
    if name == "init_from" and config.lora is None:
        # The run's own checkpoint has the weights by now; the run that was named may have been moved.
        return was is not None and now is not None and latest_step(was) is None
    return name == "init_from"  # weights below adapters are compared when they are read


def _sources(*values: Any) -> list[dict[str, Any]]:
    """The sources in lists of them; none in other values."""
    return [source for value in values if isinstance(value, list) for source in value if isinstance(source, dict)]


def check_init_from(config: RunConfig, run_dir: str, tokenizer: Tokenizer) -> None:
    """Refuses a run whose weights are not for this config's model and tokenizer; raises UserError."""
    check_is_run(Path(run_dir), "init_from")
    metadata, _ = load_metadata(run_dir)
    if metadata.base is not None:
        raise UserError(
            f"init_from {run_dir} holds adapters on {metadata.base.run_dir}: make one model of both with "
            "`stellarbyte convert to-hf` and a run of that with `from-hf`, and name it"
        )
    differing = _differing_model(metadata, run_dir, config)
    if differing:
        shown = ", ".join(f"{name} (there {a}, here {b})" for name, a, b in differing)
        raise UserError(f"init_from {run_dir} holds another model: {shown}; leave `model` out to take it from there")
    if Tokenizer(metadata.tokenizer_files, f"of {run_dir}").sha256 != tokenizer.sha256:
        raise UserError(
            f"init_from {run_dir} has another tokenizer than data.tokenizer {config.data.tokenizer}: "
            "prepare the data with the tokenizer that the weights were trained with"
        )


def _differing_model(stored: RunMetadata, run_dir: str, config: RunConfig) -> list[tuple[str, Any, Any]]:
    theirs = model_config_from_dict(stored.model, f"{run_dir}/checkpoints")
    return [(f"model.{name}", a, b) for name, a, b in differing_fields(theirs, config.model)]
