"""Counts what Muon adds to a step's arithmetic."""

import math

import jax
from flax import nnx

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.muon import by_shape, newton_schulz_flops
from stellarbyte_jax.training.param_traits import param_traits, trained_params


def muon_flops(config: RunConfig, abstract_params: nnx.State, layout: Layout) -> int:
    """FLOPs a step that the busiest chip spends on making matrices orthogonal; 0 for other optimizers than Muon."""
    if config.optimizer.optim != "muon":
        return 0
    params = trained_params(abstract_params, config.lora)
    variables = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    traits = jax.tree.leaves(param_traits(params))
    shapes = [each.get_value().shape for each, trait in zip(variables, traits, strict=True) if trait.matrix]
    return sum(
        newton_schulz_flops(sum(math.prod(shapes[index][:-2]) for index in members), few, many, layout)
        for (few, many), members in by_shape(shapes).items()
    )
