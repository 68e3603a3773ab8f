"""The pretraining loop: read it top to bottom."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.loader import TrainLoader, validation_batches
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.placement import BatchPlacement, check_batch
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.adapters import join
from stellarbyte_jax.training.checkpoint import Checkpointer, RunMetadata, latest_step
from stellarbyte_jax.training.compile_watch import CompileWatch
from stellarbyte_jax.training.diagnostics import Diagnostics
from stellarbyte_jax.training.evaluation import byte_lengths, evaluate
from stellarbyte_jax.training.interrupt import Interrupt
from stellarbyte_jax.training.metrics import MetricsLog
from stellarbyte_jax.training.optimizer import learning_rate_schedule, make_optimizer
from stellarbyte_jax.training.processes import ALONE, Processes
from stellarbyte_jax.training.profile import Profile
from stellarbyte_jax.training.start import check_start, identity, start, state_shardings
from stellarbyte_jax.training.state import Params, run_model
from stellarbyte_jax.training.step import make_eval_step, make_train_step, on_mesh
from stellarbyte_jax.training.utilization import Utilization


def pretrain(
    config: RunConfig,
    diagnostics: Diagnostics = Diagnostics(),  # noqa: B008 - it is frozen
    processes: Processes = ALONE,
) -> bool:
    """Train until max_steps, from the newest checkpoint in `output_dir` if there is one: see start.py.

    Several `processes` train one run if each calls this, with the same config.

    Returns:
        True when max_steps are done, False when a signal ended the run early (it is saved, and can go on).

    Raises:
        UserError: the data, tokenizer, mesh, the run in `init_from` or an earlier one in `output_dir` do not fit the
            config, the processes do not agree, or the loss is no longer finite.
    """
    run_dir = Path(config.output_dir)
    tokenizer = _load_tokenizer(config)
    processes.compare(identity(config, tokenizer))
    check_start(config, tokenizer)
    diagnostics.check_start(latest_step(run_dir) or 0, config.training.max_steps, run_dir)
    mesh = make_mesh(config.mesh)
    layout = Layout.of(config.mesh, mesh)
    check_batch(config.training, config.data.sequence_length, layout)
    placement = BatchPlacement(layout, config.training.batch_size, config.data.sequence_length)
    loader = TrainLoader(config.data, config.training.batch_size, config.seed, placement.rows)

    graphdef, abstract_params = run_model(config, layout)
    optimizer = make_optimizer(config.optimizer, config.training.max_steps)
    shardings, frozen_shardings = state_shardings(config, abstract_params, optimizer, layout)
    everywhere = layout.sharding()
    train_step = make_train_step(graphdef, optimizer, config.training.gradient_accumulation_steps, config.seed)
    train_step = on_mesh(train_step, layout, shardings, frozen_shardings)
    weights_shardings = join(frozen_shardings, shardings.params)
    eval_step = jax.jit(
        make_eval_step(graphdef),
        in_shardings=(weights_shardings, everywhere, placement.sharding),
        out_shardings=everywhere,
    )
    learning_rate = jax.jit(learning_rate_schedule(config.optimizer, config.training.max_steps))
    bytes_a_token_V = byte_lengths(tokenizer, config.model.vocab_size)

    state, step, frozen, base = start(config, optimizer, shardings, frozen_shardings, processes)
    manifest = Manifest.load(Path(config.data.shards))
    data = DataIdentity.of(manifest)
    if processes.index == 0:
        save_config(config, run_dir / "config.yaml")

    with (
        Checkpointer(run_dir, config.checkpoint.save_total_limit) as checkpointer,
        MetricsLog(run_dir, step, config.training.max_steps, Utilization.of(config, mesh)) as log,
        CompileWatch(log.compiled) as compile_watch,
        Profile(diagnostics.profile, run_dir, log) as profile,
        Interrupt() as interrupt,
        closing(loader.batches(step)) as batches,
    ):

        def validate() -> None:
            with log.paused():
                if config.data.validation_fraction > 0:
                    weights = join(frozen, state.params)
                    log.validation(step, evaluate(eval_step, weights, _validation(config, placement), bytes_a_token_V))

        def save() -> None:
            with log.paused():
                metadata = RunMetadata(to_dict(config), tokenizer.files, {"step": step}, base, data)
                checkpointer.save(step, state.params, state.opt_state, metadata)

        train_step = compile_watch.watch(train_step, diagnostics.dump_hlo)
        eval_step = compile_watch.watch(eval_step)
        for remark in (*diagnostics.remarks, *filter(None, [manifest.warning])):
            log.say(remark)
        log.say(_opening(config, state.params, frozen, len(loader), mesh, step))
        if step == 0:
            validate()
        while step < config.training.max_steps:
            profile.before(step + 1, state)
            batch = placement.put(next(batches))
            state, metrics = train_step(state, batch, frozen)
            log.train(step + 1, {**metrics, "learning_rate": learning_rate(step)})
            step += 1
            profile.after(step, state)

            last = step == config.training.max_steps
            if step % config.training.eval_steps == 0 or last:
                validate()
            stopping = not last and processes.stop_after(step, interrupt.requested)
            if step % config.checkpoint.save_steps == 0 or last or stopping:
                _check_finite(metrics, step, checkpointer, run_dir)
                save()
            if stopping:
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


def _validation(config: RunConfig, placement: BatchPlacement) -> Iterator[dict[str, jax.Array]]:
    training = config.training
    batches = validation_batches(config.data, training.batch_size, training.eval_batches, placement.rows)
    return (placement.put(batch) for batch in batches)


def _check_finite(metrics: dict[str, jax.Array], step: int, checkpointer: Checkpointer, run_dir: Path) -> None:
    # The gradient too: a loss may be the last finite one, and what is saved is what this gradient made of it.
    for name, value in (("loss", metrics["loss"]), ("gradient", metrics["grad_norm"])):
        if not np.isfinite(jax.device_get(value)):
            checkpointer.wait()
            kept = latest_step(run_dir)
            intact = "" if kept is None else f"; the checkpoint of step {kept} is intact"
            advice = "lower optimizer.learning_rate or raise warmup_steps"
            raise UserError(f"the {name} of step {step} is {float(value)}: {advice}{intact}")


def _opening(config: RunConfig, params: Params, frozen: Params, rows: int, mesh: Mesh, step: int) -> str:
    trained, below = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, frozen))
    parameters = f"{trained / 1e6:.1f} M parameters"
    if frozen:
        parameters = f"{trained:,} parameters of adapters on {below / 1e6:.1f} M"
    devices = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    tokens_a_step = config.training.batch_size * config.data.sequence_length
    origin = "from scratch" if config.init_from is None else f"from the weights of {config.init_from}"
    if step:
        origin = f"going on after step {step}"
    return (
        f"{parameters}, {rows} rows of {config.data.sequence_length} tokens, {tokens_a_step} "
        f"tokens a step, {mesh.size} {jax.default_backend()} device(s) ({devices}), {config.training.dtype}, "
        f"remat {config.training.remat}, {origin}"
    )
