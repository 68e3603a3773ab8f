"""What a validation of a run measures: the validation split, and the tasks of training.eval_tasks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import jax

from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.feed import Feed
from stellarbyte_jax.processes.joined import Processes
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.cut_short import until
from stellarbyte_jax.training.eval_tasks import ChoiceStep, EvalTasks
from stellarbyte_jax.training.evaluation import evaluate
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.given import Given
from stellarbyte_jax.training.programs import Programs
from stellarbyte_jax.training.state import Params, TrainState
from stellarbyte_jax.training.step import EvalStep
from stellarbyte_jax.training.watching.compile_watch import CompileWatch


class Validation(NamedTuple):
    """Measures a run's weights.

    ema: whether to measure the moving average of the weights. tasks, choice_step: None if the run asks no questions.
    """

    given: Given
    feed: Feed
    processes: Processes
    failures: Failures
    ema: bool
    tasks: EvalTasks | None
    eval_step: EvalStep
    choice_step: ChoiceStep | None

    @classmethod
    def of(
        cls,
        config: RunConfig,
        given: Given,
        feed: Feed,
        layout: Layout,
        programs: Programs,
        processes: Processes,
        failures: Failures,
    ) -> Self:
        """The validation of a run. Raises UserError: a choice of a task is longer than a row."""
        tasks = EvalTasks.of(given.tasks, config, given.tokenizer, layout)
        steps = programs.eval_step, programs.choice_step
        return cls(given, feed, processes, failures, config.training.eval_ema, tasks, *steps)

    def watched(self, watch: CompileWatch) -> Self:
        """The same, with compilations that are told."""
        choice_step = None if self.choice_step is None else watch.watch(self.choice_step)
        return self._replace(eval_step=watch.watch(self.eval_step), choice_step=choice_step)

    def weights(self, state: TrainState, frozen: Params) -> Params:
        """The parameters of the whole model that are measured."""
        return join(frozen, state.ema if self.ema and state.ema is not None else state.params)

    def figures(
        self, weights: Params, ends: Callable[[], bool], progress: Callable[[int, int | None], None]
    ) -> dict[str, float]:
        """The figures of the weights.

        Args:
            weights: the parameters of the whole model.
            ends: whether a signal or a failure is to end it.
            progress: called with the batches done and all batches.

        Raises:
            CutShortError: `ends` was true in some process.
        """

        def heeded(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
            return until(ends, batches, self.processes, self.failures)

        rows = heeded(self.feed.validation(self.given.manifest, progress))
        figures = evaluate(self.eval_step, weights, rows, self.given.bytes_a_token_V)
        if self.tasks is not None and self.choice_step is not None:
            figures |= self.tasks.figures(self.choice_step, weights, heeded(self.tasks.batches(progress)))
        return figures
