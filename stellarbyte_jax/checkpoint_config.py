"""When a run is saved, and which checkpoints are kept, as a frozen dataclass that refuses contradictions."""

from collections.abc import Sequence
from dataclasses import dataclass

from stellarbyte.errors import shown
from stellarbyte.figures import JUDGING, VALIDATION, figure_of, greater_is_better, task_figures
from stellarbyte_jax.bounds import check_number, check_whole, require

_A_WEEK = 7 * 24 * 3600  # seconds


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save, and which checkpoints to keep; one that any of the rules keeps stays."""

    save_steps: int | None = 100
    """Number of steps from one checkpoint to the next; the last step is always followed by one. null for none but those
    of save_minutes.
    """

    save_minutes: float | None = None
    """Time from one checkpoint to the next, in minutes, beside save_steps; null for none but those of save_steps. It
    bounds what a run loses that is killed.
    """

    save_total_limit: int = 2
    """Number of checkpoints that are kept because they are the newest ones."""

    keep_best: int | None = None
    """Number of checkpoints that are kept because they are the best ones by metric_for_best_model; null for none."""

    metric_for_best_model: str = "validation_loss"
    """The figure of a validation by which keep_best and training.early_stopping_patience judge: validation_loss,
    validation_perplexity or validation_bits_per_byte, the least of which is best; or validation_accuracy, or
    validation_task_NAME or validation_task_NAME_by_bytes of a task of training.eval_tasks, the greatest of which is.
    """

    keep_every_steps: int | None = None
    """Checkpoints of each so many steps are kept for ever; null for none. It must be a multiple of save_steps."""

    grace_seconds: float | None = 25.0
    """Time that a run has after a signal to finish its step and to have it saved on disk, in seconds. After that it is
    left as its newest checkpoint has it. null for no bound.
    """

    @property
    def greater_is_better(self) -> bool:
        """Whether metric_for_best_model is best where it is greatest."""
        return greater_is_better(self.metric_for_best_model)

    def check_metric(self, tasks: Sequence[str]) -> None:
        """Refuses a metric_for_best_model of a task that is none of these files: training.eval_tasks."""
        metric, asked = self.metric_for_best_model, task_figures(tasks)
        complaint = "is of a task that training.eval_tasks does not ask: "
        complaint += f"use {' or '.join(asked)}" if asked else "add its file there, or use validation_loss"
        require(metric in (*JUDGING, *asked), "checkpoint.metric_for_best_model", metric, complaint)

    def __post_init__(self) -> None:
        metric = self.metric_for_best_model
        figure = figure_of(metric) if metric.startswith(VALIDATION) else None
        require(
            figure is not None and bool(figure.better),
            "checkpoint.metric_for_best_model",
            shown(metric),
            f"is no figure of a validation that can be best: use one of {', '.join(JUDGING)}, or "
            f"{' or '.join(task_figures(['NAME']))} of a task of training.eval_tasks",
        )
        check_whole("checkpoint.save_total_limit", self.save_total_limit, 1)
        for name in ("save_steps", "keep_best", "keep_every_steps"):
            if getattr(self, name) is not None:
                check_whole(f"checkpoint.{name}", getattr(self, name), 1, otherwise=" or null")
        for name in ("save_minutes", "grace_seconds"):
            if getattr(self, name) is not None:
                check_number(f"checkpoint.{name}", getattr(self, name), above=0)
        if self.grace_seconds is not None:
            complaint = f"must be at most {_A_WEEK}, or null for no bound"
            require(self.grace_seconds <= _A_WEEK, "checkpoint.grace_seconds", self.grace_seconds, complaint)
        require(
            self.save_steps is not None or self.save_minutes is not None,
            "checkpoint.save_steps",
            "null",
            "leaves a run without checkpoints until its end, because save_minutes is null too: set one of them",
        )
        if self.keep_every_steps is not None:
            require(
                self.save_steps is not None and self.keep_every_steps % self.save_steps == 0,
                "checkpoint.keep_every_steps",
                self.keep_every_steps,
                f"must be a multiple of save_steps, which is {'null' if self.save_steps is None else self.save_steps}: "
                "what is not saved cannot be kept",
            )
