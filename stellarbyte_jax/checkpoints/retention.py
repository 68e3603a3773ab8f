"""The rule by which a run's checkpoints are kept: Orbax's preservation policies, any of which keeps one."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    EveryNSteps,
    LatestN,
    PolicyCheckpointInfo,
    PreservationContext,
    PreservationPolicy,
)

from stellarbyte.places import Place, place
from stellarbyte.validation_table import Validations
from stellarbyte_jax.checkpoint_config import CheckpointConfig
from stellarbyte_jax.checkpoints.needed import needed_by


class Retention(PreservationPolicy):
    """Keeps the newest checkpoints, the best, every M-th, and those that other runs need.

    A checkpoint is judged by the validation of its own step. One that is saved before it is validated is the newest
    until the next is saved, and a run that goes on validates it first: so none is deleted before its figures are known.

    Args:
        config: how many to keep of each kind.
        run_dir: the run's folder, in which other runs note that they need a checkpoint.
        validations: the run's validations so far; it may grow. Without those of the run's other processes, which do not
            write metrics.jsonl: only process 0 deletes, so only its view counts.
        rolls_back: whether a rollback may need the newest checkpoint of save_steps: training.on_not_finite.
    """

    def __init__(
        self, config: CheckpointConfig, run_dir: str | Place, validations: Validations, *, rolls_back: bool = False
    ) -> None:
        self._config, self._run_dir, self._validations = config, place(run_dir), validations
        self._rolls_back = rolls_back

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Which of the checkpoints, ascending by step, any of the rules keeps."""
        rules = list(self._rules().values())
        kept: Sequence[bool] = AnyPreservationPolicy(rules).should_preserve(checkpoints, context=context)
        return kept

    def reasons(self, steps: Iterable[int]) -> dict[int, list[str]]:
        """Step -> what keeps its checkpoint, in words; nothing if none of the rules does."""
        infos = [_Info(step, None) for step in sorted(steps)]
        reasons: dict[int, list[str]] = {info.step: [] for info in infos}
        for words, rule in self._rules().items():
            for info, kept in zip(infos, rule.should_preserve(infos, context=PreservationContext()), strict=True):
                if kept:
                    reasons[info.step].append(words)
        return reasons

    def best(self, steps: Iterable[int]) -> int | None:
        """The best of the checkpoints that were validated; None if there is none."""
        infos = [_Info(step, None) for step in sorted(steps)]
        rule = _Best(replace(self._config, keep_best=1), self._validations)
        kept = rule.should_preserve(infos, context=PreservationContext())
        return next((info.step for info, is_kept in zip(infos, kept, strict=True) if is_kept), None)

    def _rules(self) -> dict[str, PreservationPolicy]:
        config = self._config
        rules: dict[str, PreservationPolicy] = {f"newest {config.save_total_limit}": LatestN(config.save_total_limit)}
        if config.keep_best is not None:
            rules[f"best {config.keep_best} by {config.metric_for_best_model}"] = _Best(config, self._validations)
        if config.keep_every_steps is not None:
            rules[f"every {config.keep_every_steps} steps"] = EveryNSteps(config.keep_every_steps)
        if self._rolls_back and config.save_steps is not None:
            rules["a rollback goes back to it"] = _NewestOfEvery(config.save_steps)
        needed = needed_by(self._run_dir)
        return rules | ({"another run needs it": CustomSteps(list(needed))} if needed else {})


class _Info(NamedTuple):
    step: int
    metrics: dict[str, Any] | None
    time: datetime = datetime.min.replace(tzinfo=UTC)  # none of our rules looks at it


class _NewestOfEvery(PreservationPolicy):
    """Keeps the newest checkpoint whose step is a multiple of `steps`."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        del context
        newest = max((info.step for info in checkpoints if info.step % self._steps == 0), default=None)
        return [info.step == newest for info in checkpoints]


class _Best(PreservationPolicy):
    """BestN over the checkpoints that were validated; it would keep all others for ever, or count them as worst."""

    def __init__(self, config: CheckpointConfig, validations: Validations) -> None:
        metric = config.metric_for_best_model
        self._rule = BestN(
            get_metric_fn=lambda metrics: float(metrics[metric]),
            reverse=not config.greater_is_better,
            n=config.keep_best,
        )
        # A figure that is not finite is stored as null.
        self._known = {step: dict(each) for step, each in validations.items() if each.get(metric) is not None}

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        validated = [_Info(info.step, self._known[info.step]) for info in checkpoints if info.step in self._known]
        kept = self._rule.should_preserve(validated, context=context)
        best = {info.step for info, is_kept in zip(validated, kept, strict=True) if is_kept}
        return [info.step in best for info in checkpoints]
