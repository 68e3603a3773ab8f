"""Transformers' Trainer, extended so that a resumed run gives the same result as an uninterrupted one."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import damage, write_manifest
from stellarbyte_torch.finetune.checkpoints import LACKS_VALIDATION, readable, rotate
from stellarbyte_torch.finetune.interrupt import AskedToStopError, Interrupt
from stellarbyte_torch.model_folder import some
from stellarbyte_torch.saving import written


class ResumableTrainer(Trainer):
    """A Trainer that a signal may stop at any moment, and that ignores checkpoints that are not complete.

    If a validation was cut short, the resumed run does it before its first step, provided that `eval_on_start` is set.

    Args:
        interrupt: the callback that asks to stop.
        doing: a context manager that shows its text while the work inside it takes time.
        kwargs: Trainer's own arguments.
    """

    def __init__(
        self,
        *,
        interrupt: Interrupt | None = None,
        doing: Callable[[str], AbstractContextManager[Any]] = nullcontext,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The interrupt comes last, so that it sees what the other callbacks have decided.
        super().__init__(callbacks=[*(callbacks or ()), *([] if interrupt is None else [interrupt])], **kwargs)
        self._interrupt, self._doing = interrupt, doing
        self._lacks_validation = False

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._lacks_validation = self.control.should_evaluate
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except AskedToStopError:
            self.control.should_evaluate, self.control.should_save = False, True
            self.control.should_training_stop = True
            super()._maybe_log_save_evaluate(*args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_best = super()._determine_best_metric(metrics=metrics, trial=trial)
        self._lacks_validation = False
        return is_best

    def _evaluate(self, trial: Any, ignore_keys_for_eval: list[str] | None, skip_scheduler: bool = False) -> Any:
        """Trainer's method. A validation that a resumed run does late counts as if it had been done at its step."""
        is_late = skip_scheduler and self.state.global_step > 0
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=skip_scheduler and not is_late)
        if is_late and self._determine_best_metric(metrics=metrics, trial=trial):
            self.state.best_model_checkpoint = str(self._checkpoint())
        return metrics

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer's method, but it trains nothing if the run had ended and is resumed only to save its result."""
        ended = self.state.global_step >= self.state.max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )
        if ended:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's method, but a run that was stopped keeps its newest model instead of loading its best one."""
        if self._interrupt is None or not self._interrupt.stopped:
            return super()._finalize_training(*args, **kwargs)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        keeps_best, self.args.load_best_model_at_end = self.args.load_best_model_at_end, False
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit, self.args.load_best_model_at_end = limit, keeps_best

    def _checkpoint(self) -> Path:
        return Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Trainer's method; then a manifest marks the checkpoint as complete, and old ones are removed."""
        checkpoint = self._checkpoint()
        folder = checkpoint.parent
        if self.args.should_save and checkpoint.exists():  # a killed process left it
            shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()
        # Trainer would remove old checkpoints before the new one is complete.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with self._doing(f"saving {checkpoint.name}"), written(folder, checkpoint.name):
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    about: dict[str, Any] = {"processes": self.args.world_size}
                    write_manifest(checkpoint, {**about, LACKS_VALIDATION: self._lacks_validation})
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(checkpoint, ignore_errors=True)  # it would take up space on a full disk
            raise
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate(folder, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with readable(resume_from_checkpoint):
            if self._is_whole_here():
                self._load_whole(Path(resume_from_checkpoint))
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load_callback_state(self) -> None:
        with readable("the newest checkpoint"):
            super()._load_callback_state()

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if self.is_world_process_zero() and (problem := damage(best)) is not None:
            raise UserError(
                f"{best}, the best model, was damaged since it was written ({problem}): the same command sets it aside "
                "and takes the newest model"
            )
        with readable(str(best)):
            if self._is_whole_here():
                self._load_whole(best)
            else:
                super()._load_best_model()

    def _is_whole_here(self) -> bool:
        """Whether this process holds the whole of a Transformers model that has no adapter on it."""
        return isinstance(self.model, PreTrainedModel) and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _load_whole(self, folder: Path) -> None:
        """Loads the weights in `folder` by from_pretrained, which knows when files name weights otherwise than modules.

        Many mixtures of experts are saved so, and Trainer's own loading would leave out these weights.
        """
        model: Any = self.model
        loaded, report = type(model).from_pretrained(folder, dtype="auto", output_loading_info=True)
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if report[kind]:
                raise UserError(f"{folder} does not fit the model: {kind.replace('_', ' ')} {some(report[kind])}")
        model.load_state_dict(loaded.state_dict())
