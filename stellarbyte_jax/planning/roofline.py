"""The least time that a step can take: arithmetic, HBM and each mesh axis' wires at their full rates."""

from dataclasses import dataclass

import jax.numpy as jnp

from stellarbyte.token_flops import visible_pairs
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.attention.shared_rows import SharedRows
from stellarbyte_jax.model.attention.splash import LANES
from stellarbyte_jax.planning.layer_traces import SavedByLayers
from stellarbyte_jax.planning.memory import tokens_a_chip
from stellarbyte_jax.planning.parameters import Parameters
from stellarbyte_jax.planning.program import layout_of
from stellarbyte_jax.planning.topology import Topology, axis_bandwidths
from stellarbyte_jax.sharding import Layout

# The mesh axes whose exchanges the next matmul waits for.
WAITED_FOR = ("expert", "tensor")


@dataclass(frozen=True)
class Roofline:
    """Seconds that each resource of a chip would need for a step if there were nothing else.

    Four things can go on beside arithmetic: HBM's work, weights and gradients along data and fsdp, keys along context,
    and activations to the host and back (`host`). The sums of tensor and the exchanges of experts cannot, because the
    next matmul waits for them.
    """

    compute: float
    hbm: float
    host: float
    interconnect: dict[str, float]

    @property
    def step_seconds(self) -> float:
        """The longest of the times that run beside each other."""
        return max(self._in_parallel().values())

    @property
    def binds(self) -> str:
        """The resource that takes longest; of arithmetic and the exchanges that it waits for, the longer one."""
        times = self._in_parallel()
        longest = max(times, key=lambda name: times[name])
        if longest not in ("compute", "interconnect"):
            return longest
        axes = {
            axis: time for axis, time in self.interconnect.items() if (axis in WAITED_FOR) == (longest == "compute")
        }
        axis = max(axes, key=lambda name: axes[name], default="")
        if longest == "compute" and axes.get(axis, 0.0) <= self.compute:
            return "compute"
        return f"interconnect (mesh.{axis})"

    def _in_parallel(self) -> dict[str, float]:
        waited = sum(time for axis, time in self.interconnect.items() if axis in WAITED_FOR)
        rest = sum(self.interconnect.values()) - waited
        return {"compute": self.compute + waited, "HBM": self.hbm, "interconnect": rest, "host": self.host}


def predict_time(
    config: RunConfig,
    topology: Topology,
    sizes: dict[str, int],
    flops: float,
    parameters: Parameters,
    saved: SavedByLayers,
    received: dict[str, float],
) -> Roofline:
    """The roofline of a step (Williams et al. 2009, 10.1145/1498765.1498785) whose busiest chip executes `flops`.

    received: as received_bytes returns it.
    """
    chip, dtype, layout = topology.chip, config.training.dtype, layout_of(config, sizes)
    micro_batches = config.training.gradient_accumulation_steps
    # The loss writes and reads logits and their gradient about three times.
    rows, length = tokens_a_chip(config, layout)
    logits = 4 * rows * length * config.model.vocab_size // layout.parts("vocab")
    # The optimizer reads parameters, its state and gradients, and writes all but these, which clipping's norm reads.
    update = 4 * parameters.trained + 2 * parameters.optimizer
    traffic = micro_batches * (saved.traffic + 3 * logits) + update
    return Roofline(
        compute=flops / chip.peak_flops[dtype],
        hbm=traffic / chip.hbm_bandwidth,
        host=2 * micro_batches * saved.offloaded / chip.host_bandwidth,
        interconnect={
            axis: received.get(axis, 0.0) / bandwidth for axis, bandwidth in axis_bandwidths(topology, sizes).items()
        },
    )


def received_bytes(
    config: RunConfig, sizes: dict[str, int], parameters: Parameters, saved: SavedByLayers
) -> dict[str, float]:
    """Mesh axis -> bytes that each chip receives in a step.

    Axes that spread parameters gather them in the compute dtype for the forward pass, again for the backward pass, and
    a third time if remat repeats the forward pass; then they scatter gradients. Other axes that split tokens sum
    gradients, which costs twice what a chip holds of them. tensor gathers the inputs of attention and feed-forward and
    scatters the sums of their outputs, and does the same with the gradients. Experts' sums and weights are counted with
    the layers.
    """
    model, layout, adapters = config.model, layout_of(config, sizes), config.lora is not None
    micro_batches, itemsize = config.training.gradient_accumulation_steps, jnp.dtype(config.training.dtype).itemsize
    received = {axis: micro_batches * amount for axis, amount in saved.received.items()}

    def add(axis: str, amount: float) -> None:
        received[axis] = received.get(axis, 0.0) + micro_batches * amount

    spreading = layout.mesh_axes("hidden")
    passes = (2 if config.training.remat == "none" else 3) + (0 if adapters else 1)
    gathered = (parameters.total - parameters.experts) / 4 * itemsize
    for axis in reversed(spreading):
        add(axis, passes * gathered * (sizes[axis] - 1))
        gathered *= sizes[axis]
    summed = (parameters.trained - (0 if adapters else parameters.experts)) / 4 * itemsize
    for axis in (*layout.mesh_axes("batch"), *layout.mesh_axes("length")):
        if axis not in spreading:
            add(axis, 2 * summed * (sizes[axis] - 1) / sizes[axis])
    rows, length = tokens_a_chip(config, layout)
    moves = model.num_hidden_layers * (6 if model.num_experts else 8)
    for axis in layout.mesh_axes("heads"):
        add(axis, moves * rows * length * model.hidden_size * itemsize * (sizes[axis] - 1) / sizes[axis])
    return received


def busiest_share(config: RunConfig, layout: Layout) -> float:
    """Attention's work on the busiest chip, relative to the mean, where chips share out the queries of a row.

    Parts that cannot be balanced are contiguous, and the chip with the last queries sees the most keys.
    """
    length, window, parts = config.data.sequence_length, config.model.sliding_window, layout.parts("length")
    if SharedRows.of(layout, length, window, LANES).balanced:
        return 1.0
    pairs, before = visible_pairs(length, window), visible_pairs(length - length // parts, window)
    return (pairs - before) * parts / pairs
