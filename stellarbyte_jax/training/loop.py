"""The pretraining loop: read it top to bottom."""

import dataclasses
from contextlib import closing

import jax
import jax.numpy as jnp

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupt
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, latest_step
from stellarbyte_jax.checkpoints.folders import delete_after
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.data.batch_placement import check_batch
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.data.ledger import Ledger
from stellarbyte_jax.data.loader import TrainLoader
from stellarbyte_jax.processes.joined import Processes
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.amending import resume
from stellarbyte_jax.training.cut_model import as_saved, cut, save_cut_model, uncut_fields
from stellarbyte_jax.training.cut_short import CutShortError
from stellarbyte_jax.training.early_stopping import stops_early
from stellarbyte_jax.training.ending import conclude
from stellarbyte_jax.training.failures import Failures, ReadAhead
from stellarbyte_jax.training.finite import check_finite
from stellarbyte_jax.training.given import Given
from stellarbyte_jax.training.guard import BadStep, BeginAgain, Guard, Reports, regular_target
from stellarbyte_jax.training.opening import opening
from stellarbyte_jax.training.programs import Programs
from stellarbyte_jax.training.save_times import SaveTimes
from stellarbyte_jax.training.start import check_start, identity, start
from stellarbyte_jax.training.teacher import Teacher
from stellarbyte_jax.training.validation import Validation
from stellarbyte_jax.training.watching.compile_watch import CompileWatch
from stellarbyte_jax.training.watching.diagnostics import Diagnostics
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.profile import Profile
from stellarbyte_jax.training.watching.trackers.trackers import Trackers, check_installed
from stellarbyte_jax.training.watching.utilization import Utilization
from stellarbyte_jax.training.work_folder import WorkFolder


class Training:
    """A run from where it is: until it is done, or a signal or a failure ends it, or it has to be rolled back.

    step: the number of steps that are done. saved: the step of the newest checkpoint. stopping: whether a signal or a
    failure in some process ends the run. early: why it ends before max_steps, if it does by its validations.
    """

    def __init__(
        self,
        config: RunConfig,
        work: WorkFolder,
        diagnostics: Diagnostics,
        processes: Processes,
        interrupt: Interrupt,
        display: Display,
        amend: bool,
        back: BeginAgain | None,
    ) -> None:
        self.asked, self.work, self.diagnostics, self.back = config, work, diagnostics, back
        self.processes, self.interrupt, self.failures = processes, interrupt, Failures()
        self.max_steps = config.training.max_steps
        self.rolls_back = config.training.on_not_finite == "rollback"
        check_installed(config.training.report_to)
        self.given = given = Given.of(config)
        processes.compare(identity(config, given.tokenizer, given.data, amend=amend))
        going_on = check_start(config, given.tokenizer, given.manifest.recipe, given.data, amend=amend)
        diagnostics.check_start(latest_step(work.run_dir) or 0, self.max_steps, str(work.run_dir))
        self.mesh = make_mesh(config.mesh)
        layout = Layout.of(config.mesh, self.mesh)
        check_batch(config.training, config.data.sequence_length, layout)
        loader = TrainLoader(config.data, given.manifest, config.seed)

        self.config = now = as_saved(config, layout)
        teacher = Teacher.of(now, layout, given.tokenizer)
        self.programs = programs = Programs.of(now, layout, teacher)
        started = start(now, programs.optimizer, programs.shardings, programs.frozen_shardings, processes, teacher)
        self.state, self.step, self.frozen, self.base, metadata, self.taught_by, self.teacher = started
        self.saved, self.stopping = self.step, False
        self.early: str | None = None
        writes = processes.index == 0
        self.resumed = resume(config, given.data, metadata, self.step, going_on, amend=amend, writes=writes)
        self.loader = loader.mixed_by(self.resumed.segments)
        self.feed = Feed(config, self.loader, layout, self.step, self.resumed.rows)
        self.validation = Validation.of(now, given, self.feed, layout, programs, processes, self.failures)
        if writes:
            save_config(config, work.path / "config.yaml")
            save_cut_model(config, now, work.path)
        by = teacher.model if teacher else None
        self.utilizations = {stage: Utilization.of(now, self.mesh, stage, by) for stage in self.feed.stages}
        trackers = Trackers(config.training.report_to, config.training.project, work.path, to_dict(config), self.step)
        utilization = self.utilizations[self.feed.stage(self.step)]
        self.log = MetricsLog(work.path, self.step, self.max_steps, utilization, display, self.failures, trackers)
        self.save_times = SaveTimes(config.checkpoint, self.step, processes)
        facts = self.loader.facts(given.data.sha256, self.resumed.part)
        self.ledger = Ledger(work.path, self.step, processes, facts, self.failures.noted, rolled_back=back is not None)
        record = self.ledger.after(self.log.train)
        self.guard = Guard(config, self.step, self.resumed.guard, self.feed.rows, record, back)
        self.reports = Reports(work.path, self.loader.samples, self.log.say, self.failures, writes=writes)

    def run(self) -> bool:
        """Trains to the end; see `pretrain`.

        Raises:
            RollBack: the run is to begin again from its newest checkpoint.
        """
        config, log, processes, left = self.config, self.log, self.processes, self.max_steps - self.step
        with (
            self.interrupt,  # until the last save is on disk, a signal only asks for the end
            Checkpointer(
                self.work.run_dir, config.checkpoint, log.validations, rolls_back=self.rolls_back
            ) as self.checkpointer,
            log,
            CompileWatch(log.compiled, log.doing) as compile_watch,
            Profile(self.diagnostics.profile, self.work.path, log) as self.profile,
            self.ledger,
            closing(
                ReadAhead(self.feed.batches(self.step, self.guard.rows_left_out), left, self.failures)
            ) as self.batches,
        ):
            grace, checkpointer = config.checkpoint.grace_seconds, self.checkpointer
            self.interrupt.give_up_after(
                grace, lambda: f"not saved within checkpoint.grace_seconds {grace}; {checkpointer.give_up()}"
            )
            # A batch of another size needs another program, which is not to be warned of.
            train_step = self.programs.train_step
            self.train_steps = {stage: compile_watch.watch(train_step) for stage in self.feed.stages}
            self.train_steps[self.feed.stage(self.step)] = compile_watch.watch(train_step, self.diagnostics.dump_hlo)
            self.validation = self.validation.watched(compile_watch)
            try:
                self._begin()
                while self.step < self.max_steps and not self.stopping and self.early is None:
                    try:
                        self._one_step()
                    except BadStep as bad:
                        self._leave_out(bad)
            except BadStep as bad:
                raise self._stopped_by(bad) from None
            with log.paused("checkpoint"), log.doing("saving"):
                self.work.settle(checkpointer, self._save)
                checkpointer.wait()
                if processes.index == 0:
                    checkpointer.delete_what_nothing_keeps()
            return conclude(
                config, log, self.step, self.early, processes, self.interrupt, self.failures, stopping=self.stopping
            )

    def _begin(self) -> None:
        """Says what is about to be trained, and validates and saves if that is due before the first step."""
        remarks = (*self.diagnostics.remarks, self.given.manifest.warning, self.given.warning, *self.resumed.remarks)
        for remark in filter(None, remarks):
            self.log.say(remark)
        self.log.say(opening(self.config, self.state.params, self.frozen, self.loader, self.feed, self.mesh, self.step))
        stopped_before = self.back is not None and self.back.stopping
        self.stopping = any(self.processes.share(stopped_before or self._failed()))
        if self.rolls_back and latest_step(self.work.run_dir) is None:  # so that there is something to go back to
            self._save()
        # Validation is due before the first step, and again if a signal has cut it short.
        due = self.step % self.config.training.eval_steps == 0 or self.step == self.max_steps
        if due and not self.stopping and self.processes.share(self.log.lacks_validation(self.step))[0]:
            self.stopping = not self._validate()
        self.early = None if self.stopping else self._why_early()

    def _one_step(self) -> None:
        """Trains on a batch, and validates and saves if that is due; raises BadStep if a step was not applied."""
        log, feed, guard = self.log, self.feed, self.guard
        self.profile.before(self.step + 1, self.state)
        stage = feed.stage(self.step)
        with log.clock.waiting():
            batch = feed.put(self.step, rows := next(self.batches))
        self.state, metrics = self.train_steps[stage](self.state, batch, self.frozen, self.taught_by)
        log.utilization = self.utilizations[stage]
        log.last_epoch = guard.rows_before(self.max_steps) / len(self.loader)
        epoch = guard.rows_before(self.step + 1) / len(self.loader)
        figures = {**metrics, "learning_rate": self.programs.learning_rate(self.step), "epoch": epoch}
        self.step += 1
        self.ledger.read(self.step, rows.samples)
        guard.after(self.step, metrics, figures)
        self.profile.after(self.step, self.state)
        if self.config.training.prune is not None and self.step == self.config.training.prune.to_step:
            self._cut()

        last = self.step == self.max_steps
        if last:  # saved before it is validated, which may be cut short
            guard.catch_up()
            self._save(final=True)
        if self.step % self.config.training.eval_steps == 0 or last:
            guard.catch_up()
            self.stopping = not self._validate() or self.stopping
            self.early = None if self.stopping else self._why_early()
        self.stopping = self.stopping or (
            not last and self.processes.stop_after(guard.next_round(), self.interrupt.requested or self._failed())
        )
        ends = self.stopping or self.early is not None
        if not last and (ends or self.save_times.due(self.step)):
            guard.catch_up()
            self._save(final=ends)

    def _failed(self) -> bool:
        return self.failures.first is not None

    def _validate(self) -> bool:
        """Whether validation is complete. A signal or failure cuts it short; the resumed run does it again."""
        config, state, log = self.config, self.state, self.log
        if config.data.validation_fraction == 0:
            return True
        # A signal that came before the end of the last step stops no training, so it stops no validation either.
        heeded = self.step < self.max_steps or not any(self.processes.share(self.interrupt.requested))

        def ends() -> bool:
            return (heeded and self.interrupt.requested) or self._failed()

        with log.paused("validation"), log.doing("validating") as progress:
            weights = self.validation.weights(state, self.frozen)
            try:
                log.validation(self.step, self.validation.figures(weights, ends, progress))
            except CutShortError:
                return False
            self.work.copy(log.say)
        return True

    def _why_early(self) -> str | None:
        """Why the run ends before max_steps, by the validations that process 0 has read and written."""
        if self.config.training.early_stopping_patience is None or self.step == self.max_steps:
            return None
        why: str | None = self.processes.share(stops_early(self.config, self.log.validations))[0]
        return why

    def _save(self, final: bool = False) -> None:
        state, step = self.state, self.step
        with self.log.paused("checkpoint"), self.log.doing("saving"):
            check_finite((state.params, state.opt_state), step)
            self.ledger.sync()
            if not self.work.ready_to_save(self.checkpointer, self.log.say, final=final):
                return
            memory = self.guard.for_checkpoint(step, state)
            position = self.resumed.position(step, self.feed.rows(step))
            fields = to_dict(self.asked) | {"model": to_dict(self.config.model)}
            files, uncut = dict(self.given.tokenizer_files), uncut_fields(self.asked, self.config)
            metadata = RunMetadata(fields, files, position, self.base, self.given.data, memory, uncut, self.teacher)
            self.checkpointer.save(step, state.params, state.opt_state, metadata, state.ema, state.pruned)
        self.saved = step
        self.save_times.saved(step)

    def _cut(self) -> None:
        """Saves the run without what it has pruned; raises BeginAgain, since it goes on with a smaller model."""
        self.guard.catch_up()
        self.config, self.state = cut(self.config, self.programs.pruning, self.state)
        self._save(final=True)
        self.checkpointer.wait()
        jax.tree.map(lambda array: array.delete(), (self.state, self.taught_by))  # what is read again takes their place
        raise self.guard.begin_again(self.step, self.stopping)

    def _leave_out(self, bad: BadStep) -> None:
        """Makes the run go on after a bad step, with other batches; raises it again if the run is to stop."""
        self.step, done = bad.step - 1, self.guard.answer(bad)
        if done == "rolled back":
            self._roll_back(bad)
        if done != "skipped":
            raise bad
        self.reports.of(bad, self.guard.batch_of(bad.step), self.saved or None, done)
        self.guard.skip(bad)
        self.ledger.skip(bad.step)
        good = jax.device_put(jnp.asarray(True), self.programs.shardings.good)
        self.state = dataclasses.replace(self.state, good=good)
        batches = self.feed.batches(self.step, self.guard.rows_left_out)
        self.batches.restart(batches, self.max_steps - self.step)
        if self.stopping and 0 < self.step != self.saved:
            self._save(final=True)

    def _roll_back(self, bad: BadStep) -> None:
        """Raises RollBack, with nothing left in its way; returns if there is no checkpoint to go back to."""
        run_dir = self.work.run_dir
        self.checkpointer.wait()
        target: int | None = self.processes.share(regular_target(run_dir, self.config.checkpoint))[0]
        if target is None:
            return
        self.reports.of(bad, self.guard.batch_of(bad.step), target, "rolled back")
        if self.processes.index == 0:
            delete_after(run_dir, target)
        self.processes.share("deleted")
        self.ledger.roll_back(target, bad.step)
        jax.tree.map(lambda array: array.delete(), (self.state, self.frozen, self.taught_by))  # others take their place
        raise self.guard.rollback(bad, target, self.stopping)

    def _stopped_by(self, bad: BadStep) -> UserError:
        """What the user is told of a bad step that ends the run, which is saved as it was before."""
        self.step = bad.step - 1
        if 0 < self.step != self.saved:
            self._save(final=True)
        self.checkpointer.wait()
        kept = latest_step(self.work.run_dir)
        where = self.reports.of(bad, self.guard.batch_of(bad.step), kept, "stopped")
        intact = "" if kept is None else f"; the checkpoint of step {kept} is intact"
        return UserError(f"{self.guard.why_stopped(bad)}; {where}{intact}")
