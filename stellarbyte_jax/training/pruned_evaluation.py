"""Measures what a pruned cache costs: the loss behind a prompt, with all keys and values and within a budget."""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte.figures import perplexity
from stellarbyte.kv_cache.budgets import layer_slots
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte.places import Place
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.pruned_cache import PrunedCache
from stellarbyte_jax.training.evaluation import load_trained_run
from stellarbyte_jax.training.loss import LossSums
from stellarbyte_jax.training.state import Params, abstract_model, weight_grid
from stellarbyte_jax.training.step import batch_loss


@dataclass(frozen=True)
class PrunedEvaluation:
    """Figures of the second half of each row, which is read token by token behind the first.

    slots: the budget of each head, the mean over layers. row_tokens: the tokens of a row. tokens: the labelled tokens
    that were measured. full, pruned: (loss, perplexity, accuracy) with the full cache and with the pruned one.
    """

    slots: int
    row_tokens: int
    tokens: float
    full: dict[str, float]
    pruned: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """The same in lines for a terminal."""
        lines = [
            f"second halves of validation rows of {self.row_tokens} tokens, {self.tokens:.0f} labelled tokens",
            f"  {'':<14} {'full cache':>12} {f'{self.slots} slots':>12}",
        ]
        for name in self.full:
            lines.append(f"  {name:<14} {self.full[name]:>12.4f} {self.pruned[name]:>12.4f}")
        rise = self.pruned["perplexity"] / self.full["perplexity"] - 1
        return "\n".join([*lines, f"  perplexity behind the prompt changes by {rise:+.2%}"])


def evaluate_pruned(
    run_dir: str | Place,
    pruning: KVPruning,
    step: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    shards: str | None = None,
    *,
    ema: bool = False,
) -> tuple[PrunedEvaluation, int]:
    """(what a budget costs on the run's validation split, step of the checkpoint); see evaluate_run.

    The first half of each row is the prompt. A share as a budget is one of the whole row.

    Raises:
        UserError: as evaluate_run does; or the budget has room for whole rows.
    """
    run = load_trained_run(run_dir, step, shards, ema=ema)
    training, model = run.config.training, run.config.model
    row_tokens = run.config.data.sequence_length
    slots = pruning.budget.of(row_tokens)
    if slots >= row_tokens:
        raise UserError(
            f"--kv-budget of {slots} slots has room for all {row_tokens} tokens of a row (data.sequence_length): "
            "nothing would be dropped; give a smaller one"
        )
    graphdef, _ = abstract_model(model, Execution(training.dtype, weight_grid=weight_grid(training)))
    sizes = layer_slots(pruning.shape, slots, model.num_hidden_layers)
    measure = jax.jit(functools.partial(second_halves, graphdef, sizes, pruning))
    params, totals = jax.device_put(run.params), [[0.0] * 3, [0.0] * 3]
    for batch in run.validation_batches(progress=progress):
        for total, sums in zip(totals, jax.device_get(measure(params, batch)), strict=True):
            for place, value in enumerate((sums.loss, sums.correct, sums.tokens)):
                total[place] += float(value)
    full, pruned = (_means(*total) for total in totals)
    if not math.isfinite(full["loss"] + pruned["loss"]):
        raise UserError(f"the loss of step {run.step} of {run_dir} is not finite: choose an earlier one by --step")
    return PrunedEvaluation(slots, row_tokens, totals[0][2], full, pruned), run.step


def second_halves(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    sizes: tuple[int, ...],
    pruning: KVPruning,
    params: Params,
    batch: dict[str, jax.Array],
) -> tuple[LossSums, LossSums]:
    """The sums over the second half of each row, of all keys and values and of a cache of `sizes` slots a layer."""
    B, T = batch["input_ids"].shape
    half = T // 2
    behind_T = jnp.arange(T) >= half
    full = batch_loss(graphdef, params, {**batch, "labels": jnp.where(behind_T, batch["labels"], IGNORED_LABEL)})

    model = nnx.merge(graphdef, params).unstack()
    positions_BT = batch.get("position_ids", jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)))
    segments_BT = batch.get("segment_ids", jnp.ones((B, T), jnp.int32))
    cache = PrunedCache.create(model.config, B, sizes, pruning.policy, model.execution.dtype, shared=pruning.shared)
    ids_BT, position_ids_BT, segment_ids_BT = (
        x_BT[:, :half] for x_BT in (batch["input_ids"], positions_BT, segments_BT)
    )
    filled = model.model(ids_BT, position_ids_BT, segment_ids_BT, cache).cache

    def read(cache: Any, token: Any) -> Any:
        ids_B, positions_B, segments_B, labels_B = token
        output = model(ids_B[:, None], positions_B[:, None], segments_B[:, None], cache)
        log_p_BV = jax.nn.log_softmax(output.logits[:, 0])
        counts_B = labels_B != IGNORED_LABEL
        loss_B = -jnp.take_along_axis(log_p_BV, jnp.maximum(labels_B, 0)[:, None], axis=1)[:, 0]
        correct_B = log_p_BV.argmax(axis=1) == labels_B
        return output.cache, ((loss_B * counts_B).sum(), (correct_B & counts_B).sum(), counts_B.sum())

    rows = (batch["input_ids"], positions_BT, segments_BT, batch["labels"])
    _, sums = jax.lax.scan(read, filled, tuple(x_BT[:, half:].T for x_BT in rows))
    loss, correct, tokens = (jnp.sum(x, dtype=jnp.float32) for x in sums)
    return full, LossSums(loss, correct, tokens)


def _means(loss: float, correct: float, tokens: float) -> dict[str, float]:
    mean = loss / max(tokens, 1.0)
    return {"loss": mean, "perplexity": perplexity(mean), "accuracy": correct / max(tokens, 1.0)}
