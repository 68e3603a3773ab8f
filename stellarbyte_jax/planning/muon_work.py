"""Counts what Muon adds to a step's arithmetic."""

import math

import jax
from flax import nnx

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.muon import ITERATIONS, batches
from stellarbyte_jax.training.param_traits import param_traits, trained_params


def muon_flops(config: RunConfig, abstract_params: nnx.State, layout: Layout) -> int:
    """FLOPs a step that the busiest chip spends on making matrices orthogonal; 0 for other optimizers than Muon."""
    if config.optimizer.optim != "muon":
        return 0
    params = trained_params(abstract_params, config.lora)
    variables = jax.tree.leaves(params, is_leaf=lambda node: isinstance(node, nnx.Variable))
    pairs = zip(variables, jax.tree.leaves(param_traits(params)), strict=True)
    shapes, traits = zip(*((each.get_value().shape, trait) for each, trait in pairs if trait.matrix), strict=True)
    here = [layout.sharding(*trait.axes).shard_shape(shape) for shape, trait in zip(shapes, traits, strict=True)]
    flops = 0
    for batch, members in batches(shapes, [layout.spec(*trait.axes) for trait in traits]).items():
        matrices = sum(math.prod(here[member.which][:-2]) for member in members)
        share = -(-matrices // batch.parts(layout))
        flops += share * ITERATIONS * (4 * batch.few**2 * batch.many + 2 * batch.few**3)
    return flops
