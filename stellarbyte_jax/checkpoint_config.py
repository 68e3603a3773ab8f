"""When a run is saved, and which checkpoints are kept, as a frozen dataclass that refuses contradictions."""

from dataclasses import dataclass
from typing import Literal

from stellarbyte.figures import greater_is_better
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

    metric_for_best_model: Literal[
        "validation_loss", "validation_perplexity", "validation_accuracy", "validation_bits_per_byte"
    ] = "validation_loss"
    """The figure of a validation by which keep_best and training.early_stopping_patience judge; accuracy is best where
    it is greatest, the others where they are least.
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

    def __post_init__(self) -> None:
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
