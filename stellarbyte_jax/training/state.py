"""What a run carries from step to step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.causal_lm import ByteForCausalLM

Params = dict[str, Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Steps done, float32 parameters as a plain nested dict, and the optimizer's state."""

    step: jax.Array
    params: Params
    opt_state: optax.OptState


def abstract_model(
    config: ByteConfig, dtype: DTypeLike = jnp.float32, attention_kernel: str = "auto"
) -> tuple[nnx.GraphDef[ByteForCausalLM], nnx.State]:
    """The model's structure and its parameters' shapes, dtypes and logical axes; no memory is taken."""
    model = nnx.eval_shape(
        lambda: ByteForCausalLM(config, rngs=nnx.Rngs(0), dtype=dtype, attention_kernel=attention_kernel)
    )
    graphdef, state = nnx.split(model)
    return graphdef, state


def init_params(config: ByteConfig, seed: int) -> Params:
    """Fresh parameters; call it under jit to have them born where they belong."""
    return nnx.to_pure_dict(nnx.state(ByteForCausalLM(config, rngs=nnx.Rngs(seed))))


def init_state(config: ByteConfig, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step."""
    params = init_params(config, seed)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
