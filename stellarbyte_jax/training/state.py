"""The state that a run carries from step to step."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from stellarbyte_jax.checkpoints.adapter_trees import split_adapters
from stellarbyte_jax.config import ByteConfig, LoRAConfig, RunConfig, TrainingConfig
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.lora import add_adapters
from stellarbyte_jax.model.weight_grid import WeightGrid
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.loss_spike import SpikeRule
from stellarbyte_jax.training.prune_state import PruneState, first_state

Params = dict[str, Any]

# Dropout uses the same seed; this number gives the adapters a random stream of their own.
_ADAPTERS_STREAM = 0x10FA


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Steps done, the float32 parameters that are trained as a plain nested dict, and the optimizer's state.

    good: whether every step so far was good: its loss and gradient were finite, and its loss no spike. From the first
    step that was not, no step changes the rest of the state, so that the last good one can still be saved.
    ema: the exponential moving average of the parameters; None if the run keeps none.
    recent_losses: the window of SpikeRule; None if the run applies every step.
    pruned: what the run has pruned so far; None if it prunes nothing while it trains.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    good: jax.Array | bool = True
    ema: Params | None = None
    recent_losses: jax.Array | None = None
    pruned: PruneState | None = None


def abstract_model(
    config: ByteConfig, execution: Execution | None = None, lora: LoRAConfig | None = None
) -> tuple[nnx.GraphDef[ByteForCausalLM], nnx.State]:
    """The model's structure and its parameters' shapes, dtypes and logical axes; no memory is taken.

    Raises:
        UserError: `lora` names modules or layers that the model does not have.
    """

    def create() -> ByteForCausalLM:
        model = ByteForCausalLM(config, execution=execution, rngs=nnx.Rngs(0))
        if lora is not None:
            add_adapters(model, lora, jax.random.key(0))
        return model

    graphdef, state = nnx.split(nnx.eval_shape(create))
    return graphdef, state


def run_model(
    config: RunConfig, layout: Layout, platform: str = "auto"
) -> tuple[nnx.GraphDef[ByteForCausalLM], nnx.State]:
    """The abstract_model of a run's training on a mesh; raises as abstract_model does."""
    return abstract_model(config.model, run_execution(config, layout, platform), config.lora)


def run_execution(config: RunConfig, layout: Layout, platform: str = "auto") -> Execution:
    """How a run's training computes its model on a mesh."""
    training = config.training
    return Execution(
        dtype=training.dtype,
        platform=platform,
        attention_kernel=training.attention_kernel,
        attention_block_size=training.attention_block_size,
        remat=training.remat,
        layout=layout,
        weight_grid=weight_grid(training),
    )


def weight_grid(training: TrainingConfig) -> WeightGrid | None:
    """The grid that a run rounds its weights to in every pass; None if it trains them as they are."""
    if training.quantize == "none":
        return None
    return WeightGrid(int(training.quantize.removeprefix("w")), training.quantize_group_size)


def init_params(config: ByteConfig, seed: int) -> Params:
    """Fresh parameters; under jit with out_shardings each device makes only its own part."""
    return nnx.to_pure_dict(nnx.state(ByteForCausalLM(config, rngs=nnx.Rngs(seed))))


def init_adapters(config: ByteConfig, lora: LoRAConfig, seed: int) -> Params:
    """Fresh adapters without their base; under jit the base's weights are never made."""
    model = ByteForCausalLM(config, rngs=nnx.Rngs(0))
    add_adapters(model, lora, jax.random.fold_in(jax.random.key(seed), _ADAPTERS_STREAM))
    return split_adapters(nnx.to_pure_dict(nnx.state(model)))[1]


def init_state(
    config: ByteConfig,
    optimizer: optax.GradientTransformation,
    seed: int,
    lora: LoRAConfig | None = None,
    *,
    ema: bool = False,
) -> TrainState:
    """The state before the first step; with `lora`, its parameters are adapters; with `ema`, it has their average."""
    params = init_params(config, seed) if lora is None else init_adapters(config, lora, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema=params if ema else None)


def run_state(config: RunConfig, optimizer: optax.GradientTransformation) -> TrainState:
    """The state of a run before its first step."""
    ema, spikes = config.training.ema_decay is not None, SpikeRule.of(config.training)
    state = init_state(config.model, optimizer, config.seed, config.lora, ema=ema)
    if spikes is not None:
        state = dataclasses.replace(state, recent_losses=jnp.asarray(spikes.first()))
    return dataclasses.replace(state, pruned=run_prune_state(config))


def run_prune_state(config: RunConfig) -> PruneState | None:
    """What a run has pruned before its first step; None if it prunes nothing while it trains."""
    prune = config.training.prune
    return None if prune is None else first_state(prune, config.model)
