"""The pretraining loop: read it top to bottom."""

import signal
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.interrupt import Interrupt
from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.data.agreement import check_made_with, check_tokenizer_fits
from stellarbyte_jax.data.batch_placement import BatchPlacement, check_batch
from stellarbyte_jax.data.chat_template import files_with_template
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.loader import TrainLoader, validation_batches
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.evaluation import byte_lengths, evaluate
from stellarbyte_jax.training.failures import Failures, ReadAhead
from stellarbyte_jax.training.finite import FiniteWatch, NotFinite, check_finite
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.save_times import SaveTimes
from stellarbyte_jax.training.schedules import learning_rate_schedule
from stellarbyte_jax.training.start import check_start, identity, start, state_shardings
from stellarbyte_jax.training.state import Params, run_model
from stellarbyte_jax.training.step import make_eval_step, on_mesh, run_train_step
from stellarbyte_jax.training.watching.compile_watch import CompileWatch
from stellarbyte_jax.training.watching.diagnostics import Diagnostics
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.profile import Profile
from stellarbyte_jax.training.watching.trackers.trackers import Trackers, check_installed
from stellarbyte_jax.training.watching.utilization import Utilization


def pretrain(
    config: RunConfig,
    diagnostics: Diagnostics = Diagnostics(),  # noqa: B008 - it is frozen
    processes: Processes = ALONE,
    interrupt: Interrupt | None = None,
    display: Display | None = None,
) -> bool:
    """Trains until max_steps, from the newest checkpoint in `output_dir` if there is one: see start.py.

    Several `processes` train one run if each calls this with the same config. `interrupt` must not be entered yet; it
    tells its owner afterwards which signal came.

    Returns:
        True if max_steps are done, False if a signal ended the run early (it is saved, and can go on).

    Raises:
        UserError: the data, tokenizer, mesh, the run in `init_from` or an earlier one in `output_dir` do not fit the
            config; the processes do not agree; another process writes a run there; or the loss is no longer finite.
            Something else failed, such as the token shards or stdout: the run is saved before this is raised.
    """
    run_dir = Path(config.output_dir)
    with folder_lock(run_dir, doing="pretrain") if processes.index == 0 else nullcontext():
        return _train(config, run_dir, diagnostics, processes, interrupt or Interrupt(), display)


def _train(
    config: RunConfig,
    run_dir: Path,
    diagnostics: Diagnostics,
    processes: Processes,
    interrupt: Interrupt,
    display: Display | None,
) -> bool:
    check_installed(config.training.report_to)
    tokenizer, manifest = Tokenizer.load(config.data.tokenizer), Manifest.load(Path(config.data.shards))
    check_tokenizer_fits(config.model, tokenizer)
    check_made_with(config.data, manifest.recipe, tokenizer)
    data = DataIdentity.of(manifest)
    template_sha256 = None if manifest.recipe.chat is None else manifest.recipe.chat.chat_template_sha256
    tokenizer_files, warning = files_with_template(tokenizer, config.data, template_sha256)
    processes.compare(identity(config, tokenizer, data))
    check_start(config, tokenizer, manifest.recipe, data)
    diagnostics.check_start(latest_step(run_dir) or 0, config.training.max_steps, run_dir)
    mesh = make_mesh(config.mesh)
    layout = Layout.of(config.mesh, mesh)
    check_batch(config.training, config.data.sequence_length, layout)
    placement = BatchPlacement(layout, config.training.batch_size, config.data.sequence_length)
    loader = TrainLoader(config.data, manifest, config.training.batch_size, config.seed, placement.rows)

    graphdef, abstract_params = run_model(config, layout)
    optimizer = run_optimizer(config, abstract_params, layout)
    shardings, frozen_shardings = state_shardings(config, abstract_params, optimizer, layout)
    everywhere = layout.sharding()
    train_step = on_mesh(run_train_step(config, graphdef, optimizer), layout, shardings, frozen_shardings)
    weights_shardings = join(frozen_shardings, shardings.params)
    eval_step = jax.jit(
        make_eval_step(graphdef),
        in_shardings=(weights_shardings, everywhere, placement.sharding),
        out_shardings=everywhere,
    )
    learning_rate = jax.jit(learning_rate_schedule(config.optimizer, config.training.max_steps, jnp))
    bytes_a_token_V = byte_lengths(tokenizer, config.model.vocab_size)

    state, step, frozen, base = start(config, optimizer, shardings, frozen_shardings, processes)
    if processes.index == 0:
        save_config(config, run_dir / "config.yaml")
    max_steps, eval_ema = config.training.max_steps, config.training.eval_ema
    saved, finite, failures = step, FiniteWatch(), Failures()
    trackers = Trackers(config.training.report_to, config.training.project, run_dir, to_dict(config), step)
    log = MetricsLog(run_dir, step, max_steps, Utilization.of(config, mesh), display, failures, trackers)
    save_times = SaveTimes(config.checkpoint, step, processes)

    with (
        interrupt,  # until the last save is on disk, a signal only asks for the end
        Checkpointer(run_dir, config.checkpoint, log.validations) as checkpointer,
        log,
        CompileWatch(log.compiled, log.doing) as compile_watch,
        Profile(diagnostics.profile, run_dir, log) as profile,
        closing(loader.batches(step)) as read,
    ):
        batches = ReadAhead(read, max_steps - step, failures)
        grace = config.checkpoint.grace_seconds
        interrupt.give_up_after(
            grace, lambda: f"not saved within checkpoint.grace_seconds {grace}; {checkpointer.give_up()}"
        )

        def failed() -> bool:
            return failures.first is not None

        def validate() -> bool:
            """Whether validation is complete. A signal or failure cuts it short; the resumed run does it again."""
            if config.data.validation_fraction == 0:
                return True
            # A signal that came before the end of the last step stops no training, so it stops no validation either.
            heeded = step < max_steps or not any(processes.share(interrupt.requested))
            with log.paused(), log.doing("validating") as progress:
                weights = join(frozen, state.params if state.ema is None or not eval_ema else state.ema)
                rows = _validation(config, manifest, placement, progress)
                rows = _until(lambda: (heeded and interrupt.requested) or failed(), rows, processes, failures)
                try:
                    log.validation(step, evaluate(eval_step, weights, rows, bytes_a_token_V))
                except _CutShortError:
                    return False
            return True

        def save() -> None:
            nonlocal saved
            with log.paused(), log.doing("saving"):
                check_finite((state.params, state.opt_state), step)
                metadata = RunMetadata(to_dict(config), tokenizer_files, {"step": step}, base, data)
                checkpointer.save(step, state.params, state.opt_state, metadata, state.ema)
            saved = step
            save_times.saved(step)

        train_step = compile_watch.watch(train_step, diagnostics.dump_hlo)
        eval_step = compile_watch.watch(eval_step)
        try:
            for remark in (*diagnostics.remarks, *filter(None, [manifest.warning, warning])):
                log.say(remark)
            log.say(_opening(config, state.params, frozen, len(loader), mesh, step))
            stopping = any(processes.share(failed()))
            # Validation is due before the first step, and again if a signal has cut it short.
            due = step % config.training.eval_steps == 0 or step == max_steps
            if due and not stopping and processes.share(log.lacks_validation(step))[0]:
                stopping = not validate()
            while step < max_steps and not stopping:
                profile.before(step + 1, state)
                batch = placement.put(next(batches))
                state, metrics = train_step(state, batch, frozen)
                figures = {**metrics, "learning_rate": learning_rate(step)}
                step += 1
                finite.after(step, metrics)
                log.train(step, figures)
                profile.after(step, state)

                last = step == max_steps
                if last:  # saved before it is validated, which may be cut short
                    finite.catch_up()
                    save()
                if step % config.training.eval_steps == 0 or last:
                    finite.catch_up()
                    stopping = not validate()
                stopping = stopping or (not last and processes.stop_after(step, interrupt.requested or failed()))
                if not last and (stopping or save_times.due(step)):
                    finite.catch_up()
                    save()
        except NotFinite as error:
            step = error.step - 1
            if 0 < step != saved:
                save()
            checkpointer.wait()
            kept = latest_step(run_dir)
            intact = "" if kept is None else f"; the checkpoint of step {kept} is intact"
            raise UserError(f"{error}{intact}") from None
        with log.doing("saving"):
            checkpointer.wait()
            if processes.index == 0:
                checkpointer.delete_what_nothing_keeps()
        ends = processes.share([interrupt.number, None if failures.first is None else str(failures.first)])
        signals = [number for number, _ in ends if number is not None]
        failing = [index for index, (_, failure) in enumerate(ends) if failure is not None]
        if stopping and not failing and not signals:  # JAX's preemption sync took the signal before our handler was set
            signals = [signal.SIGTERM]
        if signals and (stopping or failing):  # a terminal that is closed sends a signal, and makes stdout fail
            interrupt.number = signals[0]
            where = f"stopped after step {step}, saved in {run_dir}" if step else "stopped before the first step"
            log.say(f"{where}: the same command goes on from there")
            return False
        if failing:
            if failures.first is None or processes.index != failing[0]:
                processes.await_end()
            where = f"; saved after step {step}: the same command goes on from there" if step else ""
            raise UserError(f"{failures.first}{where}") from failures.first
    return True


class _CutShortError(Exception):
    """A signal or a failure has cut a validation short."""


def _until(
    ends: Callable[[], bool], batches: Iterator[dict[str, jax.Array]], processes: Processes, failures: Failures
) -> Iterator[dict[str, jax.Array]]:
    """The batches, until `ends` is true in some process; then _CutShortError is raised in all processes."""
    while True:
        batch = None
        with failures.noted():
            batch = next(batches, None)
        if any(processes.share(ends())):
            raise _CutShortError
        if batch is None:
            return
        yield batch


def _validation(
    config: RunConfig, manifest: Manifest, placement: BatchPlacement, progress: Callable[[int, int], None]
) -> Iterator[dict[str, jax.Array]]:
    batch_size, count = config.training.batch_size, config.training.eval_batches
    batches = validation_batches(config.data, manifest, batch_size, count, placement.rows, progress)
    return (placement.put(batch) for batch in batches)


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
