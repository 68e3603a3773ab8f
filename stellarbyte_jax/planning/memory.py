"""Predicts what one chip holds at the fullest moment of a step, part by part."""

from dataclasses import dataclass, fields

import jax.numpy as jnp

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.layer_traces import SavedByLayers
from stellarbyte_jax.planning.parameters import Parameters
from stellarbyte_jax.planning.program import BATCH_ARRAYS, layout_of
from stellarbyte_jax.planning.tiles import padded_bytes
from stellarbyte_jax.sharding import Layout
from stellarbyte_jax.training.loss import chunk_count


@dataclass(frozen=True)
class Memory:
    """Bytes that one chip holds at `moment`, its fullest moment in a step. A part that is not in memory then counts 0.

    parameters, frozen, teacher, optimizer and batch are the step's arguments; the rest is temporary. parameters: the
    trained parameters. frozen: the weights below adapters. teacher: the weights of the model that is learnt from.
    micro_batches: the sum of gradients that accumulation carries. activations: what the layers keep for their backward
    pass. weight_copies: the layers' weights in the compute dtype. working: what one layer works with beside what is
    kept. exchanged: what a layer holds of other chips' tokens, keys or experts. gathered: one layer's weights from all
    of fsdp, and their gradients before they are scattered. head: the projection to the vocabulary, and its gradient.
    """

    moment: str
    parameters: int
    frozen: int
    teacher: int
    optimizer: int
    batch: int
    micro_batches: int
    activations: int = 0
    weight_copies: int = 0
    gradients: int = 0
    working: int = 0
    exchanged: int = 0
    gathered: int = 0
    logits: int = 0
    head: int = 0

    @property
    def arguments(self) -> int:
        """Bytes that stay from step to step."""
        return self.parameters + self.frozen + self.teacher + self.optimizer + self.batch

    @property
    def temporaries(self) -> int:
        """Bytes that come and go within a step."""
        return self.total - self.arguments

    @property
    def total(self) -> int:
        """All bytes at that moment."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Name of each part -> its bytes, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "moment"}


def predict_memory(
    config: RunConfig, sizes: dict[str, int], parameters: Parameters, saved: SavedByLayers, platform: str
) -> Memory:
    """The memory of one chip on a mesh of `sizes`."""
    model, training, layout = config.model, config.training, layout_of(config, sizes)
    pad, itemsize, adapters = platform == "tpu", jnp.dtype(training.dtype).itemsize, config.lora is not None
    rows, length = tokens_a_chip(config, layout)
    micro_batches, spread = training.gradient_accumulation_steps, layout.parts("hidden")

    # Each layer casts its own weights; without remat the forward pass keeps the copies.
    copies = saved.weights if itemsize < 4 else 0
    # Experts gather their own weights; those count as `exchanged`.
    gathered = (1 if adapters else 2) * parameters.dense_layers // 4 * itemsize * spread // model.num_hidden_layers
    head_entries = model.vocab_size * model.hidden_size // layout.parts("vocab")
    # The loss takes one chunk after the other (see training/loss.py): the logits of one chunk, and their gradient in
    # the compute dtype, are in memory at a time.
    chunk = -(-rows * length // chunk_count(rows, length)), model.vocab_size // layout.parts("vocab")
    whole_logits = padded_bytes(chunk, jnp.float32, pad)
    # Every chip makes the head's whole gradient, in float32, before fsdp shares it out. With several chunks it stands
    # beside the logits; with a single chunk it takes the place of the logits.
    head_gradient = 0 if adapters else 4 * head_entries
    if chunk_count(rows, length) == 1:
        head_gradient = max(0, head_gradient - whole_logits)
    arguments = {
        "parameters": parameters.trained,
        "frozen": parameters.frozen,
        "teacher": parameters.teacher,
        # The average of the weights counts as the optimizer's.
        "optimizer": parameters.optimizer + (0 if training.ema_decay is None else parameters.trained),
        "batch": len(BATCH_ARRAYS) * micro_batches * padded_bytes((rows, length), jnp.int32, pad),
        "micro_batches": parameters.trained if micro_batches > 1 else 0,
    }
    layers = {"activations": saved.activations, "weight_copies": copies}
    in_turn = (
        Memory(
            "the loss",
            **arguments,
            **layers,
            # The teacher's logits come beside the student's, and the difference of their probabilities.
            logits=(3 if parameters.teacher else 1) * whole_logits + padded_bytes(chunk, training.dtype, pad),
            head=head_entries * itemsize + head_gradient,
        ),
        Memory(
            "the layers' backward pass",
            **arguments,
            **layers,
            # The embedding's gradient comes after the layers'.
            gradients=parameters.trained - parameters.embedding,
            working=saved.working,
            exchanged=saved.exchanged,
            gathered=gathered if spread > 1 else 0,
        ),
        # The sum of micro-batches is then the gradient.
        Memory("the optimizer's update", **arguments, gradients=0 if micro_batches > 1 else parameters.trained),
    )
    return max(in_turn, key=lambda memory: memory.total)


def tokens_a_chip(config: RunConfig, layout: Layout) -> tuple[int, int]:
    """(rows, tokens of each) of one micro-batch on one chip."""
    rows = config.training.batch_size // config.training.gradient_accumulation_steps // layout.parts("batch")
    return rows, config.data.sequence_length // layout.parts("length")
