"""A model's parameters, without their memory."""

import functools
import math

import jax
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.training.state import abstract_model


@functools.cache
def abstract_parameters(config: ByteConfig) -> nnx.State:
    """Shapes, dtypes and logical axes."""
    return abstract_model(config, "float32", "reference", platform="cpu")[1]


def count_parameters(config: ByteConfig) -> tuple[int, int]:
    """(all parameters, those without the experts that a token is not sent to)."""
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_parameters(config)))
    idle_experts = config.num_experts - config.num_experts_per_tok if config.num_experts else 0
    an_expert = 3 * config.hidden_size * (config.moe_intermediate_size or 0)
    return total, total - config.num_hidden_layers * idle_experts * an_expert
