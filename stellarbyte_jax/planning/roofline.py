"""The least time that a step can take: arithmetic, HBM and each mesh axis' wires at their full rates."""

from dataclasses import dataclass

import jax.numpy as jnp

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.flops import StepFlops
from stellarbyte_jax.planning.memory import Memory, rows_a_chip
from stellarbyte_jax.planning.saved import SavedByLayers
from stellarbyte_jax.planning.topology import Topology, axis_bandwidths

# AdamW reads parameter, two moments and gradient, and writes all but the gradient, which the clipping's norm reads.
_OPTIMIZER_PASSES = 8


@dataclass(frozen=True)
class Roofline:
    """Seconds a step that a chip is busy with each, were there nothing else.

    HBM's work, and moving weights and gradients along data and fsdp, can go on beside arithmetic; for what tensor sums
    the next matmul waits.
    """

    compute: float
    hbm: float
    interconnect: dict[str, float]

    @property
    def step_seconds(self) -> float:
        """The longest of what goes on at once."""
        return max(self._in_parallel().values())

    @property
    def binds(self) -> str:
        """What is the longest; of arithmetic and the sums that it waits for, the longer."""
        times = self._in_parallel()
        longest = max(times, key=lambda name: times[name])
        if longest == "compute" and self.interconnect.get("tensor", 0.0) > self.compute:
            return "interconnect (mesh.tensor)"
        if longest != "interconnect":
            return longest
        axis = max((name for name in self.interconnect if name != "tensor"), key=lambda name: self.interconnect[name])
        return f"interconnect (mesh.{axis})"

    def _in_parallel(self) -> dict[str, float]:
        tensor = self.interconnect.get("tensor", 0.0)
        rest = sum(self.interconnect.values()) - tensor
        return {"compute": self.compute + tensor, "HBM": self.hbm, "interconnect": rest}


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

    fsdp gathers weights in the compute dtype for the forward and again for the backward pass, a third time where remat
    works the forward pass out again, and scatters gradients. data sums gradients: twice what a chip has of them. tensor
    sums the output of attention and of the feed-forward, and their inputs' gradients.
    """
    model, itemsize = config.model, jnp.dtype(config.training.dtype).itemsize
    micro_batches = config.training.gradient_accumulation_steps
    others = {axis: (size - 1) / size for axis, size in sizes.items()}
    # Both in the compute dtype, of what one part of a tensor axis has: all of it, and what one chip keeps.
    kept = memory.parameters / 4 * itemsize
    gathered, passes = kept * sizes["fsdp"], 3 if config.training.remat == "none" else 4
    tokens = rows_a_chip(config, sizes) * config.data.sequence_length
    sums = tokens * model.hidden_size * itemsize * 4 * model.num_hidden_layers
    return {
        "data": micro_batches * others["data"] * 2 * kept,
        "fsdp": micro_batches * others["fsdp"] * passes * gathered,
        "tensor": micro_batches * others["tensor"] * 2 * sums,
    }
