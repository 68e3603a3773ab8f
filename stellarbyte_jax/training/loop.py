"""The pretraining loop: read it top to bottom."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import (
    differing_fields,
    model_config_from_dict,
    run_config_from_dict,
    save_config,
    to_dict,
)
from stellarbyte_jax.data.loader import TrainLoader, validation_batches
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.sharding import batch_sharding, make_mesh, param_shardings, replicated
from stellarbyte_jax.training.checkpoint import Checkpointer, RunMetadata, latest_step, load_metadata, restore
from stellarbyte_jax.training.evaluation import byte_lengths, evaluate
from stellarbyte_jax.training.interrupt import Interrupt
from stellarbyte_jax.training.metrics import MetricsLog
from stellarbyte_jax.training.optimizer import learning_rate_schedule, make_optimizer
from stellarbyte_jax.training.state import TrainState, abstract_model, init_state
from stellarbyte_jax.training.step import make_eval_step, make_train_step

# What may change when a run goes on: none of it changes the losses.
_FREE_FIELDS = ("checkpoint.", "mesh.", "output_dir", "training.eval_steps", "training.eval_batches")


def pretrain(config: RunConfig) -> bool:
    """Train until max_steps, from the newest checkpoint in `output_dir` if there is one.

    Returns:
        True when max_steps are done, False when a signal ended the run early (it is saved, and can go on).

    Raises:
        UserError: the data, tokenizer, mesh or an earlier run in `output_dir` do not fit the config, or the loss is
            no longer finite.
    """
    run_dir = Path(config.output_dir)
    tokenizer = _load_tokenizer(config)
    _check_same_run(config, tokenizer, run_dir)
    loader = TrainLoader(config.data, config.training.batch_size, config.seed, jax.process_index(), jax.process_count())
    mesh = make_mesh(config.mesh)

    graphdef, abstract_params = abstract_model(config.model, config.training.dtype, config.training.attention_kernel)
    optimizer = make_optimizer(config.optimizer, config.training.max_steps)
    shardings = _state_shardings(config, abstract_params, optimizer, mesh)
    rows = batch_sharding(mesh)
    train_step = jax.jit(
        make_train_step(graphdef, optimizer, config.training.gradient_accumulation_steps, config.seed),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    eval_step = jax.jit(make_eval_step(graphdef), in_shardings=(shardings.params, replicated(mesh), rows))
    learning_rate = jax.jit(learning_rate_schedule(config.optimizer, config.training.max_steps))
    bytes_a_token_V = byte_lengths(tokenizer, config.model.vocab_size)

    state, step = _restore_or_init(config, optimizer, shardings, run_dir)
    if jax.process_index() == 0:
        save_config(config, run_dir / "config.yaml")

    with (
        Checkpointer(run_dir, config.checkpoint.save_total_limit) as checkpointer,
        MetricsLog(run_dir, step, config.training.max_steps) as log,
        Interrupt() as interrupt,
        closing(loader.batches(step)) as batches,
    ):

        def validate() -> None:
            with log.paused():
                if config.data.validation_fraction > 0:
                    log.validation(step, evaluate(eval_step, state.params, _validation(config, rows), bytes_a_token_V))

        def save() -> None:
            with log.paused():
                metadata = RunMetadata(to_dict(config), tokenizer.files, {"step": step})
                checkpointer.save(step, state.params, state.opt_state, metadata)

        log.say(_opening(config, abstract_params, len(loader), mesh, step))
        if step == 0:
            validate()
        while step < config.training.max_steps:
            batch = _to_devices(next(batches), rows)
            state, metrics = train_step(state, batch)
            log.train(step + 1, {**metrics, "learning_rate": learning_rate(step)})
            step += 1

            last = step == config.training.max_steps
            if step % config.training.eval_steps == 0 or last:
                validate()
            if step % config.checkpoint.save_steps == 0 or last or interrupt.requested:
                _check_finite(metrics, step, checkpointer, run_dir)
                save()
            if interrupt.requested and not last:
                log.say(f"stopped after step {step}, saved in {run_dir}: the same command goes on from there")
                return False
    return True


def _load_tokenizer(config: RunConfig) -> Tokenizer:
    """The run's tokenizer, once it is known to fit the model and the token shards."""
    tokenizer = Tokenizer.load(config.data.tokenizer)
    tokenizer.check_fits(config.model.vocab_size)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ours, theirs = getattr(config.model, name), getattr(tokenizer, name)
        if ours != theirs:
            raise UserError(f"model.{name} {ours} is not the tokenizer's {theirs}: set it to {theirs}")
    shards = TokenShards.open(config.data.shards, "train")
    if shards.manifest.recipe.tokenizer_sha256 != tokenizer.sha256:
        raise UserError(
            f"data.shards {config.data.shards} was made with another tokenizer than {config.data.tokenizer}: "
            "prepare it again into an empty folder"
        )
    return tokenizer


def _check_same_run(config: RunConfig, tokenizer: Tokenizer, run_dir: Path) -> None:
    if latest_step(run_dir) is None:
        return
    metadata, _ = load_metadata(run_dir)
    if "training" in metadata.config:
        before = run_config_from_dict(metadata.config, f"{run_dir}/checkpoints")
        differing = differing_fields(before, config)
    else:  # an imported model
        before_model = model_config_from_dict(metadata.config["model"], f"{run_dir}/checkpoints")
        differing = [(f"model.{name}", a, b) for name, a, b in differing_fields(before_model, config.model)]
    differing = [difference for difference in differing if not difference[0].startswith(_FREE_FIELDS)]
    if differing:
        shown = ", ".join(f"{name} (was {a}, now {b})" for name, a, b in differing)
        raise UserError(f"{run_dir} holds a run with another config: {shown}; choose another output_dir")
    if metadata.tokenizer_files != tokenizer.files:
        raise UserError(
            f"{run_dir} holds a run with another tokenizer than {config.data.tokenizer}: choose another output_dir"
        )


def _state_shardings(
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


def _restore_or_init(
    config: RunConfig, optimizer: optax.GradientTransformation, shardings: Any, run_dir: Path
) -> tuple[TrainState, int]:
    def create() -> TrainState:
        return init_state(config.model, optimizer, config.seed)

    if latest_step(run_dir) is None:
        # Under jit, so that each device makes its own part: no host ever holds the whole model.
        return jax.jit(create, out_shardings=shardings)(), 0

    abstract = jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        jax.eval_shape(create),
        shardings,
    )
    params, opt_state, _, step = restore(run_dir, abstract.params, abstract.opt_state)
    if opt_state is None:  # an imported model
        opt_state = jax.jit(optimizer.init, out_shardings=shardings.opt_state)(params)
    return TrainState(jax.device_put(jnp.asarray(step, jnp.int32), shardings.step), params, opt_state), step


def _to_devices(batch: dict[str, Any], sharding: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def _validation(config: RunConfig, sharding: jax.sharding.NamedSharding) -> Iterator[dict[str, jax.Array]]:
    training = config.training
    batches = validation_batches(
        config.data, training.batch_size, training.eval_batches, jax.process_index(), jax.process_count()
    )
    return (_to_devices(batch, sharding) for batch in batches)


def _check_finite(metrics: dict[str, jax.Array], step: int, checkpointer: Checkpointer, run_dir: Path) -> None:
    # The gradient too: a loss may be the last finite one, and what is saved is what this gradient made of it.
    for name, value in (("loss", metrics["loss"]), ("gradient", metrics["grad_norm"])):
        if not bool(jnp.isfinite(value)):
            checkpointer.wait()
            kept = latest_step(run_dir)
            intact = "" if kept is None else f"; the checkpoint of step {kept} is intact"
            advice = "lower optimizer.learning_rate or raise warmup_steps"
            raise UserError(f"the {name} of step {step} is {float(value)}: {advice}{intact}")


def _opening(config: RunConfig, abstract_params: Any, rows: int, mesh: Mesh, step: int) -> str:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_params))
    devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    tokens_a_step = config.training.batch_size * config.data.sequence_length
    start = f"going on after step {step}" if step else "from scratch"
    return (
        f"{parameters / 1e6:.1f} M parameters, {rows} rows of {config.data.sequence_length} tokens, {tokens_a_step} "
        f"tokens a step, {mesh.size} {jax.default_backend()} device(s) ({devices}), {config.training.dtype}, {start}"
    )
