"""Traces the train step as the trainer builds it, for machines that need not be here."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Jaxpr, JaxprEqn
from jax.interpreters import partial_eval

from stellarbyte_jax.checkpoints.adapter_trees import join, split_adapters
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.attention.kernels import default_kernel
from stellarbyte_jax.model.attention.splash import LANES
from stellarbyte_jax.planning.array_placement import Placement, place_of
from stellarbyte_jax.planning.jaxprs import loop_body
from stellarbyte_jax.sharding import Layout, abstract_mesh, param_shardings
from stellarbyte_jax.training.state import abstract_model, run_execution

BATCH_ARRAYS = ("input_ids", "labels", "position_ids", "segment_ids")


@dataclass(frozen=True)
class LayerLoops:
    """The two scans over layers in the train step, forward and backward, and the placement of their arrays."""

    forward: JaxprEqn
    backward: JaxprEqn
    placement: Placement

    @property
    def bodies(self) -> tuple[Jaxpr, Jaxpr]:
        """What one layer does in each of the two scans."""
        return loop_body(self.forward), loop_body(self.backward)


def kernel_of(config: RunConfig, platform: str) -> str:
    """The attention kernel that a run uses on a platform."""
    kernel = config.training.attention_kernel
    return default_kernel(platform, config.model.attention_dropout) if kernel == "auto" else kernel


def abstract_batch(rows: int, length: int, sharding: Any = None) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of packed data that a step takes, by name."""
    return {name: jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=sharding) for name in BATCH_ARRAYS}


def layout_of(config: RunConfig, sizes: dict[str, int]) -> Layout:
    """The run's layout on a mesh of these sizes. No chip is needed to tell how an array is cut."""
    return Layout.of(config.mesh, abstract_mesh(sizes))


def layer_loops(config: RunConfig, sizes: dict[str, int], rows: int, platform: str, remat: str) -> LayerLoops:
    """Traces the gradient of all layers for micro-batches of `rows` rows a chip; nothing is compiled.

    Raises:
        UserError: the kernel cannot do what the config asks, or the mesh does not divide a parameter.
    """
    kernel, length = kernel_of(config, platform), config.data.sequence_length
    layout = layout_of(config, sizes)
    if kernel == "cudnn":
        # cuDNN cannot be traced here. It keeps what splash keeps, which takes a multiple of 128 tokens on each chip.
        multiple = LANES * layout.parts("length")
        kernel, length = "splash", -(-length // multiple) * multiple
    execution = replace(run_execution(config, layout, platform), attention_kernel=kernel, remat=remat)
    graphdef, abstract = abstract_model(config.model, execution, config.lora)
    placed = param_shardings(abstract, layout)
    batch = abstract_batch(rows * layout.parts("batch"), length)
    frozen, trained = split_adapters(nnx.to_pure_dict(abstract, extract_fn=lambda variable: variable.get_value()))
    frozen_placed, trained_placed = split_adapters(placed)
    if config.lora is None:
        frozen, trained, frozen_placed, trained_placed = {}, frozen, {}, frozen_placed

    def scalar(trained: Any, frozen: Any, batch: Any) -> jax.Array:
        model = nnx.merge(graphdef, join(frozen, trained)).model
        key = jax.random.key(0) if model.stochastic else None
        input_ids, position_ids, segment_ids = (batch[name] for name in ("input_ids", "position_ids", "segment_ids"))
        output = model(input_ids, position_ids, segment_ids, dropout_key=key, training=True)
        # Any scalar that depends on all that the loss reads leads to the same gradient program of the layers.
        router = () if output.router is None else (output.router.balance_B, output.router.z_B)
        return sum((jnp.sum(array, dtype=jnp.float32) for array in (output.hidden, *router)), jnp.zeros(()))

    traced = jax.make_jaxpr(jax.grad(scalar))(trained, frozen, batch).jaxpr
    # XLA removes what nothing needs, such as a kernel that would run again for outputs that were kept; so does this.
    jaxpr, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars), instantiate=True)
    inputs = [
        place_of(sharding.spec, array.ndim)
        for arrays, shardings in ((trained, trained_placed), (frozen, frozen_placed))
        for array, sharding in zip(jax.tree.leaves(arrays), jax.tree.leaves(shardings), strict=True)
    ]
    placement = Placement(sizes)
    placement.follow(jaxpr, inputs + [place_of(layout.spec("batch", "length"), 2)] * len(batch))
    loops = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
    loops = [eqn for eqn in loops if eqn.params["length"] == config.model.num_hidden_layers]
    forward = next(eqn for eqn in loops if not eqn.params["reverse"])
    return LayerLoops(forward, next(eqn for eqn in loops if eqn.params["reverse"]), placement)
