"""The compiled functions of a run, and where the arrays of its state lie."""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.eval_tasks import ChoiceStep, choice_step_on_mesh
from stellarbyte_jax.training.evaluation import eval_step_on_mesh
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.schedules import learning_rate_schedule
from stellarbyte_jax.training.start import state_shardings
from stellarbyte_jax.training.state import Params, run_model
from stellarbyte_jax.training.step import EvalStep, TrainStep, on_mesh, run_train_step
from stellarbyte_jax.training.teacher import Teacher


class Programs(NamedTuple):
    """What a run calls in every step.

    shardings: a TrainState with a sharding for each array. frozen_shardings: those of the weights below adapters.
    learning_rate: a function from the number of steps that are done to the rate of the next.
    pruning: the rule by which the train step prunes; None if it does not. choice_step: for training.eval_tasks; None
    without them.
    """

    optimizer: optax.GradientTransformation
    shardings: Any
    frozen_shardings: Params
    train_step: TrainStep
    eval_step: EvalStep
    learning_rate: Callable[[Any], Any]
    pruning: GradualPruning | None
    choice_step: ChoiceStep | None

    @classmethod
    def of(cls, config: RunConfig, layout: Layout, teacher: Teacher | None = None) -> Self:
        """The programs of a run whose arrays lie by this layout; they are compiled when they are first called."""
        graphdef, abstract_params = run_model(config, layout)
        optimizer = run_optimizer(config, abstract_params, layout)
        shardings, frozen_shardings = state_shardings(config, abstract_params, optimizer, layout)
        pruning = GradualPruning.of(config, optimizer)
        train_step = run_train_step(config, graphdef, optimizer, pruning, None if teacher is None else teacher.graphdef)
        weights_shardings = join(frozen_shardings, shardings.params)
        asks = bool(config.training.eval_tasks)
        taught_by = {} if teacher is None else teacher.shardings
        return cls(
            optimizer,
            shardings,
            frozen_shardings,
            on_mesh(train_step, layout, shardings, frozen_shardings, taught_by),
            eval_step_on_mesh(graphdef, weights_shardings, layout),
            jax.jit(learning_rate_schedule(config.optimizer, config.training.max_steps, jnp)),
            pruning,
            choice_step_on_mesh(graphdef, weights_shardings, layout) if asks else None,
        )
