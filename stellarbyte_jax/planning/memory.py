"""What one chip holds at the fullest moment of a step, part by part."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.program import BATCH_ARRAYS, abstract_model_on
from stellarbyte_jax.planning.saved import SavedByLayers, padded_bytes
from stellarbyte_jax.sharding import Layout, param_shardings
from stellarbyte_jax.training.loss import TOKENS_PER_CHUNK


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip. The first three are the step's arguments, which its results replace; the rest is temporary.

    gradients: as far as they are not made yet when the logits, which go before them, are there. micro_batches: the sum
    of gradients that accumulation carries. head: the vocabulary's projection in the compute dtype, and its gradient.
    weight_copies: the layers' weights in the compute dtype, once for each direction.
    """

    parameters: int
    optimizer: int
    batch: int
    gradients: int
    micro_batches: int
    activations: int
    weight_copies: int
    logits: int
    head: int

    @property
    def arguments(self) -> int:
        """What stays from step to step."""
        return self.parameters + self.optimizer + self.batch

    @property
    def temporaries(self) -> int:
        """What comes and goes within one."""
        return self.total - self.arguments

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())

    def parts(self) -> dict[str, int]:
        """Name to bytes, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def predict_memory(config: RunConfig, sizes: dict[str, int], saved: SavedByLayers, platform: str) -> Memory:
    """The memory of one chip on a mesh of `sizes`.

    Raises:
        UserError: a parameter's axis is not divisible by its mesh axis.
    """
    model, training = config.model, config.training
    pad, itemsize = platform == "tpu", jnp.dtype(training.dtype).itemsize
    rows, length = rows_a_chip(config, sizes), config.data.sequence_length
    parameters = local_parameters(config, sizes, pad)
    accumulating = training.gradient_accumulation_steps > 1

    head_entries = model.vocab_size * model.hidden_size // sizes["tensor"]
    # Nothing makes one chunk of the loss wait for the one before: the compiler makes all logits first.
    chunks = loss_chunks(config, sizes)
    chunk_rows = -(-rows * length // chunks)
    logits = chunks * padded_bytes((chunk_rows, model.vocab_size // sizes["tensor"]), jnp.float32, pad)
    # Of the head every chip makes the whole gradient before fsdp shares it out.
    head = head_entries * (4 + (itemsize if itemsize < 4 or sizes["fsdp"] > 1 else 0))
    return Memory(
        parameters=parameters,
        optimizer=2 * parameters,
        batch=len(BATCH_ARRAYS) * training.gradient_accumulation_steps * padded_bytes((rows, length), jnp.int32, pad),
        gradients=max(0, parameters - logits),
        micro_batches=parameters if accumulating else 0,
        activations=saved.activations,
        weight_copies=2 * saved.weights // sizes["fsdp"] if itemsize < 4 else saved.weights // sizes["fsdp"],
        logits=logits,
        head=head,
    )


def rows_a_chip(config: RunConfig, sizes: dict[str, int]) -> int:
    """Rows of one micro-batch on one chip."""
    return config.training.batch_size // config.training.gradient_accumulation_steps // (sizes["data"] * sizes["fsdp"])


def loss_chunks(config: RunConfig, sizes: dict[str, int]) -> int:
    """Into how many parts the loss takes a micro-batch of all chips."""
    tokens = rows_a_chip(config, sizes) * sizes["data"] * sizes["fsdp"] * config.data.sequence_length
    return max(1, min(config.data.sequence_length, round(tokens / TOKENS_PER_CHUNK)))


def local_parameters(config: RunConfig, sizes: dict[str, int], pad: bool) -> int:
    """Bytes of one chip's float32 parameters, placed by the table in sharding.py."""
    _, abstract = abstract_model_on(config.model, "float32", "reference", "cpu")
    mesh: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes))  # no device is needed to say how an array is cut
    placed = param_shardings(abstract, Layout.of(config.mesh, mesh))
    shapes = nnx.to_pure_dict(abstract, extract_fn=lambda variable: variable.get_value())
    local = jax.tree.map(
        lambda array, sharding: padded_bytes(sharding.shard_shape(array.shape), array.dtype, pad, free=True),
        shapes,
        placed,
    )
    return sum(jax.tree.leaves(local))
