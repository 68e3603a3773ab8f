"""The least time that a step can take: arithmetic, HBM and each mesh axis' wires at their full rates."""

from dataclasses import dataclass

import jax.numpy as jnp

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.flops import StepFlops
from stellarbyte_jax.planning.memory import Memory, rows_a_chip
from stellarbyte_jax.planning.saved import SavedByLayers
from stellarbyte_jax.planning.topology import Topology, axis_bandwidths

# AdamW reads parameter, two moments and gradient, and writes all but the gradient, which the clipping's norm reads.
_OPTIMIZER_PASSES = 8


@dataclass(frozen=True)
class Roofline:
    """Seconds a step that a chip is busy with each, were there nothing else; all three can go on at once.

    interconnect: by mesh axis; axes wait for each other.
    """

    compute: float
    hbm: float
    interconnect: dict[str, float]

    @property
    def step_seconds(self) -> float:
        """The longest of the three: no step is shorter."""
        return max(self.compute, self.hbm, sum(self.interconnect.values()))

    @property
    def binds(self) -> str:
        """What is the longest."""
        times = {"compute": self.compute, "HBM": self.hbm, "interconnect": sum(self.interconnect.values())}
        longest = max(times, key=lambda name: times[name])
        if longest == "interconnect":
            axis = max(self.interconnect, key=lambda name: self.interconnect[name])
            return f"interconnect (mesh.{axis})"
        return longest


def predict_time(
    config: RunConfig,
    topology: Topology,
    sizes: dict[str, int],
    flops: StepFlops,
    memory: Memory,
    saved: SavedByLayers,
) -> Roofline:
    """The roofline of a step (Williams et al. 2009, 10.1145/1498765.1498785)."""
    chip, dtype = topology.chip, config.training.dtype
    micro_batches = config.training.gradient_accumulation_steps
    # The loss writes and reads logits and their gradient about three times.
    tokens = rows_a_chip(config, sizes) * config.data.sequence_length
    logits = 4 * tokens * config.model.vocab_size // sizes["tensor"]
    traffic = micro_batches * (saved.traffic + 3 * logits) + _OPTIMIZER_PASSES * memory.parameters
    bandwidths = axis_bandwidths(topology, sizes)
    received = received_bytes(config, sizes, memory)
    return Roofline(
        compute=flops.executed / topology.size / chip.peak_flops[dtype],
        hbm=traffic / chip.hbm_bandwidth,
        interconnect={axis: received[axis] / bandwidth for axis, bandwidth in bandwidths.items()},
    )


def received_bytes(config: RunConfig, sizes: dict[str, int], memory: Memory) -> dict[str, float]:
    """Bytes that each chip receives a step along each mesh axis.

    fsdp gathers weights in the compute dtype for the forward and again for the backward pass, and scatters gradients:
    three times the weights. data sums gradients: twice what a chip has of them. tensor sums the output of attention
    and of the feed-forward, and their inputs' gradients.
    """
    model, itemsize = config.model, jnp.dtype(config.training.dtype).itemsize
    micro_batches = config.training.gradient_accumulation_steps
    others = {axis: (size - 1) / size for axis, size in sizes.items()}
    # Both in the compute dtype, of what one part of a tensor axis has: all of it, and what one chip keeps.
    kept = memory.parameters / 4 * itemsize
    gathered = kept * sizes["fsdp"]
    tokens = rows_a_chip(config, sizes) * config.data.sequence_length
    sums = tokens * model.hidden_size * itemsize * 4 * model.num_hidden_layers
    return {
        "data": micro_batches * others["data"] * 2 * kept,
        "fsdp": micro_batches * others["fsdp"] * 3 * gathered,
        "tensor": micro_batches * others["tensor"] * 2 * sums,
    }
