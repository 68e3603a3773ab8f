"""One training step and one evaluation step, as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.group_norms import group_norms
from stellarbyte_jax.training.logit_loss import PLAIN, Regularization
from stellarbyte_jax.training.loss import LossSums
from stellarbyte_jax.training.loss_spike import SpikeRule
from stellarbyte_jax.training.objective import Batch, Objective, forward, in_micro_batches
from stellarbyte_jax.training.router_loss import RouterSums, router_loss, router_metrics
from stellarbyte_jax.training.state import Params, TrainState
from stellarbyte_jax.training.zeta_loss import zeta_loss

Metrics = dict[str, jax.Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, jax.Array, Any], tuple[LossSums, jax.Array]]


def run_train_step(
    config: RunConfig,
    graphdef: nnx.GraphDef[ByteForCausalLM],
    optimizer: optax.GradientTransformation,
    pruning: GradualPruning | None,
    teacher: nnx.GraphDef[ByteForCausalLM] | None,
) -> TrainStep:
    """The train step of a run; see make_train_step."""
    training = config.training
    return make_train_step(
        graphdef,
        optimizer,
        **Objective.of(config, teacher)._asdict(),
        ema_decay=training.ema_decay,
        spikes=SpikeRule.of(training),
        log_norms=training.log_norms,
        pruning=pruning,
    )


def make_train_step(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    optimizer: optax.GradientTransformation,
    gradient_accumulation_steps: int = 1,
    seed: int = 0,
    regularization: Regularization = PLAIN,
    ema_decay: float | None = None,
    *,
    spikes: SpikeRule | None = None,
    position_shift: int = 0,
    xpos_regularization_coef: float = 0.0,
    log_norms: bool = False,
    pruning: GradualPruning | None = None,
    teacher: nnx.GraphDef[ByteForCausalLM] | None = None,
) -> TrainStep:
    """A function (state, batch, frozen, taught_by) -> (state, metrics), which applies a batch's mean gradient once.

    A step whose loss or gradient is not finite is not applied, nor is any step after it: see TrainState.good.

    The mean is over labelled tokens. Each weighs the same in whatever micro-batch it is, so accumulation changes only
    the memory. A model with experts adds its routers' losses, which are means over all tokens that are not padding; in
    the metrics, `loss` is the cross-entropy without them and without `regularization`, and `objective` is with them.
    Dropout and DropPath depend on `seed`, the step and the micro-batch, and on nothing else. `log_norms` adds the norms
    of the groups of parameters.

    With `ema_decay` the state's average of the parameters follows them: see `moving_average`. With `spikes` a step
    whose loss is a spike is not applied either, and the metrics have `is_spike`. `position_shift` is the largest offset
    of `shifted`, and `xpos_regularization_coef` the weight of `zeta_loss` in what training makes small. With `pruning`
    the step keeps at zero what that has pruned, and the metrics have the shares that are kept.

    `frozen` holds the model's parameters that are not in the state, which are the base below adapters; by default there
    are none. `taught_by` holds the parameters of the model `teacher`, for the distillation in `regularization`; the
    metrics then have the divergence from it. A batch holds int32 [B, T] arrays: input_ids, labels and, if documents are
    packed, position_ids and segment_ids.
    """
    objective = Objective(
        gradient_accumulation_steps, seed, regularization, position_shift, xpos_regularization_coef, teacher
    )

    def train_step(
        state: TrainState, batch: Batch, frozen: Params | None = None, taught_by: Params | None = None
    ) -> tuple[TrainState, Metrics]:
        model = nnx.merge(graphdef, join(frozen, state.params))
        config = model.config
        batch = objective.whole_batch(batch, state.step)
        tokens = jnp.sum(batch["labels"] != IGNORED_LABEL, dtype=jnp.float32)
        keys = objective.dropout_keys(model, state.step)

        def mean_loss(
            params: Params, rows: Batch, dropout_key: jax.Array | None
        ) -> tuple[jax.Array, tuple[LossSums, RouterSums | None]]:
            model = nnx.merge(graphdef, join(frozen, params))
            return objective.mean_loss(model, params, rows, dropout_key, batch, taught_by)

        gradient_of = jax.grad(mean_loss, has_aux=True)
        if gradient_accumulation_steps == 1:
            gradients, (sums, router) = gradient_of(state.params, batch, None if keys is None else keys[0])
        else:
            gradients, (sums, router) = _accumulate(gradient_of, state.params, batch, keys, gradient_accumulation_steps)

        pruned = None
        if pruning is not None:
            assert state.pruned is not None
            pruned = pruning.after(state.pruned, gradients, state.params, state.step + 1)
            gradients = pruning.without(gradients, pruned)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**_means(sums), "grad_norm": optax.global_norm(gradients)}
        if router is not None:
            metrics |= router_metrics(config, router)
        if regularization or router is not None or xpos_regularization_coef:
            extra = 0.0 if router is None else router_loss(config, router, batch)
            if xpos_regularization_coef:
                assert config.head_dim is not None
                extra += xpos_regularization_coef * zeta_loss(state.params, config.head_dim)
            metrics["objective"] = sums.objective / jnp.maximum(tokens, 1) + extra
        if log_norms:
            metrics |= group_norms(gradients, "grad") | group_norms(updates, "update")
        good = state.good & jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        recent = state.recent_losses
        if spikes is not None:
            assert recent is not None
            metrics["is_spike"] = spikes.is_spike(metrics["loss"], recent)
            good, recent = good & ~metrics["is_spike"], spikes.after(metrics["loss"], recent)
        ema = state.ema if ema_decay is None else moving_average(state.ema, params, state.step + 1, ema_decay)
        after = TrainState(state.step + 1, params, opt_state, state.good, ema, recent)
        if pruning is not None and pruned is not None:
            after = pruning.applied(after, pruned)
            metrics |= pruning.metrics(pruned)
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), after, state)
        return dataclasses.replace(kept, good=good), metrics

    return train_step


def moving_average(ema: Params | None, params: Params, step: jax.Array, decay: float) -> Params:
    """The exponential moving average of the parameters after step n: d · ema + (1 - d) · params, float32.

    d = min(decay, (1 + n) / (10 + n)), so that the first, random parameters are soon forgotten (as in TensorFlow's
    ExponentialMovingAverage with num_updates).
    """
    share = 1 - jnp.minimum(decay, (1 + step) / (10 + step)).astype(jnp.float32)
    return jax.tree.map(lambda average, new: average + share * (new - average), ema, params)


def on_mesh(
    train_step: TrainStep, layout: Layout, shardings: Any, frozen_shardings: Params, teacher_shardings: Params
) -> Any:
    """The train step, jitted for a state and weights with these shardings. It donates the state it is given."""
    return jax.jit(
        train_step,
        in_shardings=(shardings, layout.sharding("batch", "length"), frozen_shardings, teacher_shardings),
        out_shardings=(shardings, layout.sharding()),
        donate_argnums=0,
    )


def make_eval_step(graphdef: nnx.GraphDef[ByteForCausalLM]) -> EvalStep:
    """A function (params, bytes of each token [V], batch) -> (loss sums, bytes of text that the labels stand for)."""

    def eval_step(params: Params, byte_lengths_V: jax.Array, batch: Batch) -> tuple[LossSums, jax.Array]:
        return batch_loss(graphdef, params, batch), text_bytes(byte_lengths_V, batch)

    return eval_step


def text_bytes(byte_lengths_V: jax.Array, batch: Batch) -> jax.Array:
    """The bytes of text that a batch's labels stand for, by the tokenizer's `byte_lengths`."""
    labels_BT = batch["labels"]
    bytes_BT = jnp.where(labels_BT == IGNORED_LABEL, 0, byte_lengths_V[jnp.maximum(labels_BT, 0)])
    # The first token of a text may hold a blank that is not the text's: bos, before it, then has a length of -1.
    before_BT = jnp.minimum(byte_lengths_V[batch["input_ids"]], 0)
    return jnp.sum(bytes_BT + jnp.where(bytes_BT > 0, before_BT, 0), dtype=jnp.float32)


def batch_loss(graphdef: nnx.GraphDef[ByteForCausalLM], params: Params, batch: Batch) -> LossSums:
    """Sums of loss, correct predictions and tokens over a batch, without dropout."""
    return forward(nnx.merge(graphdef, params), batch, None, training=False)[0]


def _accumulate(  # type: ignore[no-untyped-def]
    gradient_of, params: Params, batch: Batch, keys: jax.Array | None, steps: int
) -> tuple[Params, tuple[LossSums, RouterSums | None]]:
    micro_batches = in_micro_batches(batch, steps)
    some_key = None if keys is None else keys[0]
    first = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient_of, params, batch, some_key))

    def add(total, inputs):  # type: ignore[no-untyped-def]
        rows, key = inputs
        return jax.tree.map(jnp.add, total, gradient_of(params, rows, key)), None

    return jax.lax.scan(add, first, (micro_batches, keys))[0]


def _means(sums: LossSums) -> Metrics:
    tokens = jnp.maximum(sums.tokens, 1)
    means = {"loss": sums.loss / tokens, "accuracy": sums.correct / tokens, "tokens": sums.tokens}
    return means if sums.divergence is None else means | {"divergence": sums.divergence / tokens}
