"""The tasks of training.eval_tasks: questions as batches on a mesh, and the share that is answered right."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.evaluation.batches import Row
from stellarbyte.evaluation.choices import Task, figures_of, rows_of
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.batch_placement import BatchPlacement
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.state import Params
from stellarbyte_jax.training.step import Batch
from stellarbyte_jax.training.token_scores import token_scores

# (parameters, batch) -> the log-probability of each row's labels together, in nats, float32 [B].
ChoiceStep = Callable[[Params, Any], jax.Array]

# Rows are as short as the questions allow, down to so many tokens for each part of a row that a mesh makes.
_SHORTEST = 128


class TaskRows(NamedTuple):
    """A task and its rows, one for each choice of each question."""

    task: Task
    rows: Sequence[Row]


class EvalTasks(NamedTuple):
    """The tasks of a run, and how their rows lie."""

    tasks: Sequence[TaskRows]
    placement: BatchPlacement

    @classmethod
    def of(cls, given: Sequence[Task], config: RunConfig, tokenizer: Tokenizer, layout: Layout) -> Self | None:
        """The tasks as rows of the run's; None if there are none.

        Raises:
            UserError: a choice is longer than a row.
        """
        if not given:
            return None
        length, parts = config.data.sequence_length, layout.parts("length")
        encode, begin = tokenizer.encode, tokenizer.bos_token_id
        tasks = [TaskRows(task, list(rows_of(task, encode, begin, length))) for task in given]
        longest = max(len(row.ids) - 1 for _, rows in tasks for row in rows)
        while length % (2 * parts) == 0 and length // 2 >= max(longest, _SHORTEST * parts):
            length //= 2
        return cls(tasks, BatchPlacement(layout, config.training.batch_size, length))

    def batches(self, progress: Callable[[int, int], None]) -> Iterator[dict[str, jax.Array]]:
        """The rows of all tasks, one task after the other, as global arrays; the last batch is filled up.

        progress: called with the batches done and all batches.
        """
        rows, size = [row for _, some in self.tasks for row in some], self.placement.batch_size
        count = -(-len(rows) // size)
        for number in range(count):
            some = rows[number * size : (number + 1) * size]
            local = [some[place] if place < len(some) else None for place in self.placement.rows]
            yield self.placement.put(_batch(local, self.placement.length))
            progress(number + 1, count)

    def figures(self, step: ChoiceStep, weights: Params, batches: Iterator[dict[str, jax.Array]]) -> dict[str, float]:
        """The figures of the tasks by the names of stellarbyte/figures.py. batches: what `batches` gives."""
        log_p: list[float] = []
        for batch in batches:
            log_p += np.asarray(jax.device_get(step(weights, batch)), np.float64).tolist()
        found: dict[str, float] = {}
        for task, rows in self.tasks:
            figures, log_p = figures_of(task, log_p[: len(rows)]), log_p[len(rows) :]
            found |= {f"task_{task.name}": figures.accuracy, f"task_{task.name}_by_bytes": figures.accuracy_by_bytes}
        return found


def choice_step_on_mesh(graphdef: nnx.GraphDef[ByteForCausalLM], shardings: Params, layout: Layout) -> ChoiceStep:
    """The compiled step for batches that lie by this layout; the weights lie as their shardings say."""

    def choice_step(params: Params, batch: Batch) -> jax.Array:
        model = nnx.merge(graphdef, params)
        hidden_BTD = model.model(batch["input_ids"], batch["position_ids"], batch["segment_ids"]).hidden
        log_p_BT, _, _ = token_scores(model, hidden_BTD, batch["labels"])
        return jnp.sum(jnp.where(batch["labels"] == IGNORED_LABEL, 0.0, log_p_BT), axis=1)

    everywhere = layout.sharding()
    return jax.jit(choice_step, in_shardings=(shardings, layout.sharding("batch", "length")), out_shardings=everywhere)


def _batch(rows: Sequence[Row | None], length: int) -> dict[str, np.ndarray]:
    """Rows of one choice each; None is a row of nothing, which its first token alone fills."""
    shape = len(rows), length
    batch = {name: np.zeros(shape, np.int32) for name in ("input_ids", "labels", "position_ids", "segment_ids")}
    batch["labels"][:] = IGNORED_LABEL
    batch["position_ids"][:] = np.arange(length)
    batch["segment_ids"][:, 0] = 1
    for place, row in enumerate(rows):
        if row is not None:
            T = row.fill(batch["input_ids"][place], batch["labels"][place])
            batch["segment_ids"][place, :T] = 1
    return batch
