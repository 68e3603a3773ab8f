"""The pretraining loop: read it top to bottom."""

import dataclasses
from contextlib import closing

import jax
import jax.numpy as jnp

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupt
from stellarbyte.places import place
from stellarbyte.run_log import RunLog
from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, latest_step
from stellarbyte_jax.checkpoints.folders import delete_after
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.data.agreement import check_made_with, check_tokenizer_fits
from stellarbyte_jax.data.batch_placement import check_batch
from stellarbyte_jax.data.chat_template import files_with_template
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.ledger import Ledger
from stellarbyte_jax.data.loader import TrainLoader
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.processes.joined import ALONE, Processes
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.amending import resume
from stellarbyte_jax.training.cut_short import CutShortError, until
from stellarbyte_jax.training.early_stopping import stops_early
from stellarbyte_jax.training.ending import conclude
from stellarbyte_jax.training.evaluation import byte_lengths, eval_step_on_mesh, evaluate
from stellarbyte_jax.training.failures import Failures, ReadAhead
from stellarbyte_jax.training.finite import check_finite
from stellarbyte_jax.training.guard import BadStep, Guard, Reports, RollBack, regular_target
from stellarbyte_jax.training.opening import opening
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.save_times import SaveTimes
from stellarbyte_jax.training.schedules import learning_rate_schedule
from stellarbyte_jax.training.start import check_start, identity, start, state_shardings
from stellarbyte_jax.training.state import run_model
from stellarbyte_jax.training.step import on_mesh, run_train_step
from stellarbyte_jax.training.watching.compile_watch import CompileWatch
from stellarbyte_jax.training.watching.diagnostics import Diagnostics
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.profile import Profile
from stellarbyte_jax.training.watching.trackers.trackers import Trackers, check_installed
from stellarbyte_jax.training.watching.utilization import Utilization
from stellarbyte_jax.training.work_folder import WorkFolder, work_folder


def pretrain(
    config: RunConfig,
    diagnostics: Diagnostics = Diagnostics(),  # noqa: B008 - it is frozen
    processes: Processes = ALONE,
    interrupt: Interrupt | None = None,
    display: Display | None = None,
    *,
    amend: bool = False,
) -> bool:
    """Trains until max_steps, from the newest checkpoint in `output_dir` if there is one: see start.py.

    Several `processes` train one run if each calls this with the same config. `interrupt` must not be entered yet; it
    tells its owner afterwards which signal came. `amend` lets a run go on with another config, as far as same_run.py
    allows, and records the change.

    Returns:
        True if max_steps are done or the run has stopped early by its validations, False if a signal ended it (it is
        saved, and can go on).

    Raises:
        UserError: the data, tokenizer, mesh, the run in `init_from` or an earlier one in `output_dir` do not fit the
            config; the processes do not agree; another process writes a run there; or the loss is not finite, and
            training.on_not_finite lets it not go on. Something else failed, such as the token shards or stdout: the
            run is saved before this is raised.
    """
    display = display or Display(quiet=processes.index != 0)
    with (
        work_folder(config.output_dir, processes) as work,
        RunLog(work.path, display, diagnostics.log, processes.index),
    ):
        interrupt, back = interrupt or Interrupt(), None
        while True:
            try:
                return _train(config, work, diagnostics, processes, interrupt, display, amend, back)
            except RollBack as error:
                # It begins again as any run that goes on. A copy has no traceback, which would keep what it leaves.
                amend, back, diagnostics = False, dataclasses.replace(error), diagnostics.after(error.reached)


def _train(
    config: RunConfig,
    work: WorkFolder,
    diagnostics: Diagnostics,
    processes: Processes,
    interrupt: Interrupt,
    display: Display,
    amend: bool,
    back: RollBack | None,
) -> bool:
    check_installed(config.training.report_to)
    run_dir = work.run_dir
    tokenizer, manifest = Tokenizer.load(config.data.tokenizer), Manifest.load(place(config.data.shards))
    check_tokenizer_fits(config.model, tokenizer)
    check_made_with(config.data, manifest.recipe, tokenizer)
    data = DataIdentity.of(manifest)
    template_sha256 = None if manifest.recipe.chat is None else manifest.recipe.chat.chat_template_sha256
    tokenizer_files, warning = files_with_template(tokenizer, config.data, template_sha256)
    processes.compare(identity(config, tokenizer, data, amend=amend))
    going_on = check_start(config, tokenizer, manifest.recipe, data, amend=amend)
    diagnostics.check_start(latest_step(run_dir) or 0, config.training.max_steps, str(run_dir))
    mesh = make_mesh(config.mesh)
    layout = Layout.of(config.mesh, mesh)
    check_batch(config.training, config.data.sequence_length, layout)
    loader = TrainLoader(config.data, manifest, config.seed)

    graphdef, abstract_params = run_model(config, layout)
    optimizer = run_optimizer(config, abstract_params, layout)
    shardings, frozen_shardings = state_shardings(config, abstract_params, optimizer, layout)
    train_step = on_mesh(run_train_step(config, graphdef, optimizer), layout, shardings, frozen_shardings)
    eval_step = eval_step_on_mesh(graphdef, join(frozen_shardings, shardings.params), layout)
    learning_rate = jax.jit(learning_rate_schedule(config.optimizer, config.training.max_steps, jnp))
    bytes_a_token_V = byte_lengths(tokenizer, config.model.vocab_size)

    state, step, frozen, base, metadata = start(config, optimizer, shardings, frozen_shardings, processes)
    resumed = resume(config, data, metadata, step, going_on, amend=amend, writes=processes.index == 0)
    loader = loader.mixed_by(resumed.segments)
    feed = Feed(config, loader, layout, step, resumed.rows)
    utilizations = {stage: Utilization.of(config, mesh, stage) for stage in feed.stages}
    if processes.index == 0:
        save_config(config, work.path / "config.yaml")
    max_steps, eval_ema = config.training.max_steps, config.training.eval_ema
    saved, failures, stopping = step, Failures(), False
    trackers = Trackers(config.training.report_to, config.training.project, work.path, to_dict(config), step)
    log = MetricsLog(work.path, step, max_steps, utilizations[feed.stage(step)], display, failures, trackers)
    save_times = SaveTimes(config.checkpoint, step, processes)
    facts = loader.facts(data.sha256, resumed.part)
    ledger = Ledger(work.path, step, processes, facts, failures.noted, rolled_back=back is not None)
    guard = Guard(config, step, resumed.guard, feed.rows, ledger.after(log.train), back)
    reports = Reports(work.path, loader.samples, log.say, failures, writes=processes.index == 0)
    rolls_back = config.training.on_not_finite == "rollback"
    early: str | None = None

    with (
        interrupt,  # until the last save is on disk, a signal only asks for the end
        Checkpointer(run_dir, config.checkpoint, log.validations, rolls_back=rolls_back) as checkpointer,
        log,
        CompileWatch(log.compiled, log.doing) as compile_watch,
        Profile(diagnostics.profile, work.path, log) as profile,
        ledger,
        closing(ReadAhead(feed.batches(step, guard.rows_left_out), max_steps - step, failures)) as batches,
    ):
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
            with log.paused("validation"), log.doing("validating") as progress:
                weights = join(frozen, state.params if state.ema is None or not eval_ema else state.ema)
                rows = feed.validation(manifest, progress)
                rows = until(lambda: (heeded and interrupt.requested) or failed(), rows, processes, failures)
                try:
                    log.validation(step, evaluate(eval_step, weights, rows, bytes_a_token_V))
                except CutShortError:
                    return False
                work.copy(log.say)
            return True

        def save(final: bool = False) -> None:
            nonlocal saved
            with log.paused("checkpoint"), log.doing("saving"):
                check_finite((state.params, state.opt_state), step)
                ledger.sync()
                if not work.ready_to_save(checkpointer, log.say, final=final):
                    return
                memory = guard.for_checkpoint(step, state)
                position = resumed.position(step, feed.rows(step))
                metadata = RunMetadata(to_dict(config), tokenizer_files, position, base, data, memory)
                checkpointer.save(step, state.params, state.opt_state, metadata, state.ema)
            saved = step
            save_times.saved(step)

        def one_step() -> None:
            """Trains on a batch, and validates and saves if that is due; raises BadStep if a step was not applied."""
            nonlocal state, step, stopping, early
            profile.before(step + 1, state)
            stage = feed.stage(step)
            with log.clock.waiting():
                batch = feed.put(step, rows := next(batches))
            state, metrics = train_steps[stage](state, batch, frozen)
            log.utilization, log.last_epoch = utilizations[stage], guard.rows_before(max_steps) / len(loader)
            epoch = guard.rows_before(step + 1) / len(loader)
            figures = {**metrics, "learning_rate": learning_rate(step), "epoch": epoch}
            step += 1
            ledger.read(step, rows.samples)
            guard.after(step, metrics, figures)
            profile.after(step, state)

            last = step == max_steps
            if last:  # saved before it is validated, which may be cut short
                guard.catch_up()
                save(final=True)
            if step % config.training.eval_steps == 0 or last:
                guard.catch_up()
                stopping = not validate() or stopping
                early = None if stopping else why_early()
            stopping = stopping or (
                not last and processes.stop_after(guard.next_round(), interrupt.requested or failed())
            )
            if not last and (stopping or early is not None or save_times.due(step)):
                guard.catch_up()
                save(final=stopping or early is not None)

        def why_early() -> str | None:
            """Why the run ends before max_steps, by the validations that process 0 has read and written."""
            if config.training.early_stopping_patience is None or step == max_steps:
                return None
            why: str | None = processes.share(stops_early(config, log.validations))[0]
            return why

        def leave_out(bad: BadStep) -> None:
            """Makes the run go on after a bad step, with other batches; raises it again if the run is to stop."""
            nonlocal state, step
            step, done = bad.step - 1, guard.answer(bad)
            if done == "rolled back":
                roll_back(bad)
            if done != "skipped":
                raise bad
            reports.of(bad, guard.batch_of(bad.step), saved or None, done)
            guard.skip(bad)
            ledger.skip(bad.step)
            state = dataclasses.replace(state, good=jax.device_put(jnp.asarray(True), shardings.good))
            batches.restart(feed.batches(step, guard.rows_left_out), max_steps - step)
            if stopping and 0 < step != saved:
                save(final=True)

        def roll_back(bad: BadStep) -> None:
            """Raises RollBack, with nothing left in its way; returns if there is no checkpoint to go back to."""
            checkpointer.wait()
            target: int | None = processes.share(regular_target(run_dir, config.checkpoint))[0]
            if target is None:
                return
            reports.of(bad, guard.batch_of(bad.step), target, "rolled back")
            if processes.index == 0:
                delete_after(run_dir, target)
            processes.share("deleted")
            ledger.roll_back(target, bad.step)
            jax.tree.map(lambda array: array.delete(), (state, frozen))  # others take their place
            raise guard.rollback(bad, target, stopping)

        # A batch of another size needs another program, which is not to be warned of.
        train_steps = {stage: compile_watch.watch(train_step) for stage in feed.stages}
        train_steps[feed.stage(step)] = compile_watch.watch(train_step, diagnostics.dump_hlo)
        eval_step = compile_watch.watch(eval_step)
        try:
            for remark in filter(None, (*diagnostics.remarks, manifest.warning, warning, *resumed.remarks)):
                log.say(remark)
            log.say(opening(config, state.params, frozen, loader, feed, mesh, step))
            stopping = any(processes.share((back is not None and back.stopping) or failed()))
            if rolls_back and latest_step(run_dir) is None:  # so that there is something to go back to
                save()
            # Validation is due before the first step, and again if a signal has cut it short.
            due = step % config.training.eval_steps == 0 or step == max_steps
            if due and not stopping and processes.share(log.lacks_validation(step))[0]:
                stopping = not validate()
            early = None if stopping else why_early()
            while step < max_steps and not stopping and early is None:
                try:
                    one_step()
                except BadStep as bad:
                    leave_out(bad)
        except BadStep as bad:
            step = bad.step - 1
            if 0 < step != saved:
                save(final=True)
            checkpointer.wait()
            kept = latest_step(run_dir)
            where = reports.of(bad, guard.batch_of(bad.step), kept, "stopped")
            intact = "" if kept is None else f"; the checkpoint of step {kept} is intact"
            raise UserError(f"{guard.why_stopped(bad)}; {where}{intact}") from None
        with log.paused("checkpoint"), log.doing("saving"):
            work.settle(checkpointer, save)
            checkpointer.wait()
            if processes.index == 0:
                checkpointer.delete_what_nothing_keeps()
        return conclude(config, log, step, early, processes, interrupt, failures, stopping=stopping)
