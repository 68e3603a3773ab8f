"""Computes a step of a run once more, and tells what passed through its model, forward and backward."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte.places import Place
from stellarbyte.report.measurements import StepStatistics, TensorStatistics
from stellarbyte.report.names import named
from stellarbyte_jax.checkpoints.adapter_trees import Tree, join
from stellarbyte_jax.report.probes import LARGEST, NOT_FINITE, SQUARES, ZEROS, Probes, probed, spread
from stellarbyte_jax.report.run_step import RunStep, find_step
from stellarbyte_jax.report.weights import array_name, leaves
from stellarbyte_jax.training.objective import Objective, in_micro_batches
from stellarbyte_jax.training.state import run_model
from stellarbyte_jax.training.teacher import Teacher


def step_statistics(run_dir: Place, step: int) -> StepStatistics:
    """The statistics of the step of a run, on the batch that it read; nothing in the run's folder changes.

    The weights are those of the newest checkpoint from before the step. It is computed on one device, in which all of
    the model's activations have to fit.

    Raises:
        UserError: the run has no such step, or its weights or its data cannot be read.
    """
    found = find_step(run_dir, step)
    config, layout = found.config, found.layout
    graphdef, _ = run_model(config, layout)
    teacher = Teacher.of(config, layout, found.tokenizer)
    taught_by = None if teacher is None else teacher.read()
    objective = Objective.of(config, None if teacher is None else teacher.graphdef)

    def loss(params: Tree, zeros: Mapping[str, jax.Array], rows: Any, key: Any, batch: Any) -> tuple[jax.Array, Any]:
        model = probed(nnx.merge(graphdef, join(found_frozen, params)), Probes(zeros))
        value, (sums, _) = objective.mean_loss(model, params, rows, key, batch, taught_by)
        return value, sums.loss

    found_frozen, params = jax.device_put((found.frozen, found.params))
    done = jnp.asarray(step - 1, jnp.int32)
    batch = objective.whole_batch({name: jnp.asarray(rows) for name, rows in found.batch.items()}, done)
    model = nnx.merge(graphdef, join(found_frozen, params))
    keys = objective.dropout_keys(model, done)
    micro_batches = in_micro_batches(batch, objective.gradient_accumulation_steps)
    sizes = _sizes(graphdef, join(found_frozen, params), {name: array[0] for name, array in micro_batches.items()})
    zeros = {name: jnp.zeros((2, 4), jnp.float32) for name in sizes}
    gradient_of = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    gradients: Any = None
    spreads: dict[str, list[np.ndarray]] = {}
    total = 0.0
    for number in range(objective.gradient_accumulation_steps):
        rows = {name: array[number] for name, array in micro_batches.items()}
        (more, seen), part = gradient_of(params, zeros, rows, None if keys is None else keys[number], batch)
        gradients = more if gradients is None else jax.tree.map(jnp.add, gradients, more)
        for name in sizes:
            spreads.setdefault(name, []).append(np.asarray(seen[name], np.float64))
        total += float(part)
    tokens = int(jnp.sum(batch["labels"] != IGNORED_LABEL))
    return _told(found, step, sizes, spreads, _of_parameters(params, gradients), total / max(tokens, 1), tokens)


def _sizes(graphdef: Any, params: Tree, rows: Mapping[str, jax.Array]) -> dict[str, int]:
    """Name -> how many numbers each watched module gives, in the order of computation."""
    probes = Probes()

    def forward() -> None:
        model = probed(nnx.merge(graphdef, params), probes)
        model.model(rows["input_ids"], rows.get("position_ids"), rows.get("segment_ids"), training=True)

    jax.eval_shape(forward)
    return probes.sizes


def _of_parameters(params: Tree, gradients: Tree) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """(name, size, spread of the values, spread of the gradient) of each parameter, of each layer by itself."""
    one, many = jax.jit(spread), jax.jit(jax.vmap(spread))
    pairs = zip(leaves(params), leaves(gradients), strict=True)
    for (path, values), (_, gradient) in pairs:
        if path[:2] != ("model", "layers"):
            yield array_name(path), values.size, *(np.asarray(one(x), np.float64) for x in (values, gradient))
            continue
        each = [np.asarray(many(x), np.float64) for x in (values, gradient)]
        for layer in range(len(values)):
            yield array_name(path, layer), values[0].size, each[0][layer], each[1][layer]


def _told(
    found: RunStep,
    step: int,
    sizes: Mapping[str, int],
    spreads: Mapping[str, list[np.ndarray]],
    parameters: Iterator[tuple[str, int, np.ndarray, np.ndarray]],
    loss: float,
    tokens: int,
) -> StepStatistics:
    values = [_statistics(name, "activation", size, [s[0] for s in spreads[name]]) for name, size in sizes.items()]
    backward = [
        _statistics(name, "activation_gradient", size, [s[1] for s in spreads[name]])
        for name, size in reversed(list(sizes.items()))
    ]
    weights, gradients, squares = [], [], 0.0
    for name, size, of_values, of_gradient in parameters:
        weights.append(_statistics(name, "parameter", size, [of_values]))
        gradients.append(_statistics(name, "gradient", size, [of_gradient]))
        squares += of_gradient[LARGEST] ** 2 * of_gradient[SQUARES]
    is_finite = not any(each.not_finite for each in gradients)
    bad_loss = [] if math.isfinite(loss) else ["loss"]
    first = [*_bad(weights), *_bad(values), *bad_loss, *_bad(backward), *_bad(gradients)]
    return StepStatistics(
        step=step,
        checkpoint=found.checkpoint,
        samples=tuple(sorted(found.batch.samples)),
        batch_tokens=tokens,
        loss=loss,
        grad_norm=math.sqrt(squares) if is_finite else math.nan,
        tensors=(*values, *backward, *(each for pair in zip(weights, gradients, strict=True) for each in pair)),
        first_not_finite=first[0] if first else None,
        remark="; ".join(found.remarks) or None,
    )


def _bad(found: list[TensorStatistics]) -> list[str]:
    """The names of those that are not finite; a gradient has the name of what it is of."""
    bad = [each for each in found if each.not_finite]
    return [f"the gradient of {each.name}" if "gradient" in each.kind else each.name for each in bad]


def _statistics(name: str, kind: str, size: int, spreads: list[np.ndarray]) -> TensorStatistics:
    """The statistics of the arrays of all micro-batches together, `size` numbers each."""
    squares = sum(each[LARGEST] ** 2 * each[SQUARES] for each in spreads)
    bad, count = sum(each[NOT_FINITE] for each in spreads), size * len(spreads)
    return TensorStatistics(
        name=name,
        kind=kind,
        layer=named(f"{name}.output").layer,
        rms=math.sqrt(squares / max(count - bad, 1)),
        largest=float(max(each[LARGEST] for each in spreads)),
        zeros=float(sum(each[ZEROS] for each in spreads) / count),
        not_finite=int(bad),
    )
