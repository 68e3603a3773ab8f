"""What one chip holds at the fullest moment of a step, part by part."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.parameters import abstract_parameters
from stellarbyte_jax.planning.program import BATCH_ARRAYS
from stellarbyte_jax.planning.saved import SavedByLayers, padded_bytes
from stellarbyte_jax.sharding import Layout, param_shardings
from stellarbyte_jax.training.loss import TOKENS_PER_CHUNK


@dataclass(frozen=True)
class Memory:
    """Bytes of one chip at `moment`; of what is not there at that moment, none.

    The first three are the step's arguments, which its results replace; the rest is temporary. micro_batches: the sum
    of gradients that accumulation carries. working: what one layer works out again. gathered: one layer's weights from
    all of fsdp, and their gradients before they are scattered. weight_copies: the layers' weights in the compute dtype.
    head: the vocabulary's projection, and its gradient.
    """

    moment: str
    parameters: int
    optimizer: int
    batch: int
    micro_batches: int
    activations: int
    weight_copies: int
    gradients: int
    working: int
    gathered: int
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
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Name to bytes, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}


def predict_memory(config: RunConfig, sizes: dict[str, int], saved: SavedByLayers, platform: str) -> Memory:
    """The memory of one chip on a mesh of `sizes`.

    Raises:
        UserError: a parameter's axis is not divisible by its mesh axis.
    """
    model, training = config.model, config.training
    pad, itemsize = platform == "tpu", jnp.dtype(training.dtype).itemsize
    rows, length = rows_a_chip(config, sizes), config.data.sequence_length
    parameters = local_parameters(config, sizes, pad)
    micro_batches = training.gradient_accumulation_steps

    # Both directions' loops begin by casting all layers' weights; without remat the first keeps what it cast as well.
    cast = layer_entries(config, sizes, pad) * itemsize
    copies = cast + saved.weights // sizes["fsdp"] if itemsize < 4 else 0
    gathered = 2 * cast * sizes["fsdp"] // model.num_hidden_layers if sizes["fsdp"] > 1 else 0
    head_entries = model.vocab_size * model.hidden_size // sizes["tensor"]
    # One chunk of the loss after the other, see training/loss.py: its logits, and their gradient in the compute dtype.
    chunk = -(-rows * length // loss_chunks(config, sizes)), model.vocab_size // sizes["tensor"]
    logits = padded_bytes(chunk, jnp.float32, pad) + padded_bytes(chunk, training.dtype, pad)
    always = {
        "parameters": parameters,
        "optimizer": 2 * parameters,
        "batch": len(BATCH_ARRAYS) * micro_batches * padded_bytes((rows, length), jnp.int32, pad),
        "micro_batches": parameters if micro_batches > 1 else 0,
        "activations": saved.activations,
        "weight_copies": copies,
    }
    in_turn = (
        # Of the head every chip makes the whole gradient, in float32, before fsdp shares it out.
        Memory(
            "the loss",
            **always,
            gradients=0,
            working=0,
            gathered=0,
            logits=logits,
            head=head_entries * (4 + itemsize),
        ),
        Memory(
            "the layers' backward pass",
            **always,
            gradients=parameters,
            working=saved.working,
            gathered=gathered,
            logits=0,
            head=head_entries * itemsize // sizes["fsdp"],
        ),
    )
    return max(in_turn, key=lambda memory: memory.total)


def rows_a_chip(config: RunConfig, sizes: dict[str, int]) -> int:
    """Rows of one micro-batch on one chip."""
    return config.training.batch_size // config.training.gradient_accumulation_steps // (sizes["data"] * sizes["fsdp"])


def loss_chunks(config: RunConfig, sizes: dict[str, int]) -> int:
    """Into how many parts the loss takes one chip's micro-batch."""
    tokens = rows_a_chip(config, sizes) * config.data.sequence_length
    return max(1, min(config.data.sequence_length, round(tokens / TOKENS_PER_CHUNK)))


def local_parameters(config: RunConfig, sizes: dict[str, int], pad: bool) -> int:
    """Bytes of one chip's float32 parameters, placed by the table in sharding.py."""
    return sum(jax.tree.leaves(_local_bytes(config, sizes, pad)))


def layer_entries(config: RunConfig, sizes: dict[str, int], pad: bool) -> int:
    """How many numbers one chip has of the layers' parameters."""
    return sum(jax.tree.leaves(_local_bytes(config, sizes, pad)["model"]["layers"])) // 4


def _local_bytes(config: RunConfig, sizes: dict[str, int], pad: bool) -> dict[str, Any]:
    abstract = abstract_parameters(config.model)
    mesh: Any = AbstractMesh(tuple(sizes.values()), tuple(sizes))  # no device is needed to say how an array is cut
    placed = param_shardings(abstract, Layout.of(config.mesh, mesh))
    shapes = nnx.to_pure_dict(abstract, extract_fn=lambda variable: variable.get_value())
    return jax.tree.map(
        lambda array, sharding: padded_bytes(sharding.shard_shape(array.shape), array.dtype, pad, free=True),
        shapes,
        placed,
    )
