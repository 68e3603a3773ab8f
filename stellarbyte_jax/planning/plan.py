"""The plan of a run on a machine: whether it fits, how fast it is at best, what it costs and what limits it."""

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.batch_placement import check_batch
from stellarbyte_jax.model.attention.shared_rows import SharedRows
from stellarbyte_jax.model.attention.splash import LANES, block_of
from stellarbyte_jax.model.flops import StepFlops, forward_flops, head_flops, kernel_flops, step_flops
from stellarbyte_jax.planning.layer_traces import LayerTraces, SavedByLayers
from stellarbyte_jax.planning.memory import Memory, predict_memory, tokens_a_chip
from stellarbyte_jax.planning.muon_work import muon_flops
from stellarbyte_jax.planning.parameters import counter_of
from stellarbyte_jax.planning.program import kernel_of, layout_of
from stellarbyte_jax.planning.roofline import Roofline, busiest_share, predict_time, received_bytes
from stellarbyte_jax.planning.topology import Topology, mesh_sizes


@dataclass(frozen=True)
class Plan:
    """What is predicted of a run.

    offloaded: bytes of the host's memory that one chip needs.
    received: mesh axis -> bytes that a chip receives along it in a step.
    """

    config: RunConfig
    topology: Topology
    mesh: dict[str, int]
    kernel: str
    parameters: int
    active_parameters: int
    memory: Memory
    offloaded: int
    flops: StepFlops
    received: dict[str, float]
    roofline: Roofline

    @property
    def fits(self) -> bool:
        """Whether the memory of one chip is enough."""
        return self.memory.total <= self.topology.chip.hbm_bytes

    @property
    def tokens_a_step(self) -> int:
        """Tokens that all chips together read in a step, padding included."""
        return self.config.training.batch_size * self.config.data.sequence_length

    @property
    def tokens_per_second(self) -> float:
        """The highest rate that the roofline allows."""
        return self.tokens_a_step / self.roofline.step_seconds

    @property
    def mfu(self) -> float:
        """The highest possible share of the chips' peak that goes into the model's own FLOPs."""
        chip = self.topology.chip
        peak = chip.peak_flops[self.config.training.dtype] * self.topology.size
        return self.flops.model / self.roofline.step_seconds / peak

    @property
    def binds(self) -> str:
        """What limits the run: "memory" if it does not fit, else what its step waits for longest."""
        return self.roofline.binds if self.fits else "memory"

    def cost(self, tokens: float, price: float | None) -> tuple[float, float | None]:
        """(hours, US dollars): the least that `tokens` take, at `price` a chip and hour or at the list price."""
        hours = tokens / self.tokens_per_second / 3600
        price = self.topology.chip.price if price is None else price
        return hours, None if price is None else hours * self.topology.size * price

    def to_dict(self, tokens: float | None = None, price: float | None = None) -> dict[str, Any]:
        """The plan for JSON: bytes, seconds and FLOPs; memory is one chip's. `tokens` adds their time and cost."""
        run = {} if tokens is None else dict(zip(("hours", "dollars"), self.cost(tokens, price), strict=True))
        training = self.config.training
        return {
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "chips": self.topology.size,
            "mesh": self.mesh,
            "remat": training.remat,
            "gradient_accumulation_steps": training.gradient_accumulation_steps,
            "batch_size": training.batch_size,
            "sequence_length": self.config.data.sequence_length,
            "dtype": training.dtype,
            "attention_kernel": self.kernel,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "memory": {
                "moment": self.memory.moment,
                **self.memory.parts(),
                "total": self.memory.total,
                "hbm": int(self.topology.chip.hbm_bytes),
                "offloaded": self.offloaded,
            },
            "fits": self.fits,
            "tokens_a_step": self.tokens_a_step,
            "flops_a_step": asdict(self.flops),
            "received_bytes_a_step": self.received,
            "roofline_seconds": asdict(self.roofline),
            "step_seconds": self.roofline.step_seconds,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "binds": self.binds,
            **run,
        }


def make_plan(config: RunConfig, topology: Topology) -> Plan:
    """Predicts a run on a topology.

    Raises:
        UserError: the trainer cannot run this config, or the mesh does not fit the topology.
    """
    return Planner(config, topology).plan(config)


class Planner:
    """Makes plans of one run on one topology; the plans may differ in mesh, micro-batches and remat.

    Raises:
        UserError: the run's attention kernel is not for these chips.
    """

    def __init__(self, config: RunConfig, topology: Topology) -> None:
        platform = topology.chip.platform
        self.topology, self.kernel = topology, kernel_of(config, platform)
        if self.kernel == "splash" and platform == "gpu":
            raise UserError("training.attention_kernel splash is for TPUs: use auto, cudnn or reference on GPUs")
        if self.kernel == "cudnn" and platform == "tpu":
            raise UserError("training.attention_kernel cudnn is for GPUs: use auto, splash or reference on TPUs")
        self._traces, self._parameters = LayerTraces(config, platform), counter_of(config)

    def plan(self, config: RunConfig) -> Plan:
        """Predicts the run with this variant of its config.

        Raises:
            UserError: the mesh does not fit the topology, or does not divide the batch, the rows or a parameter.
        """
        sizes = mesh_sizes(config.mesh, self.topology)
        layout, platform, training = layout_of(config, sizes), self.topology.chip.platform, config.training
        check_batch(training, config.data.sequence_length, layout)
        rows, _ = tokens_a_chip(config, layout)
        parameters = self._parameters.local(config, sizes, platform)
        saved = self._traces.saved(training.remat, sizes, rows)
        memory = predict_memory(config, sizes, parameters, saved, platform)
        received = received_bytes(config, sizes, parameters, saved)
        flops, busiest = self._flops(config, sizes, saved)
        return Plan(
            config=config,
            topology=self.topology,
            mesh=sizes,
            kernel=self.kernel,
            parameters=self._parameters.total,
            active_parameters=self._parameters.active,
            memory=memory,
            offloaded=saved.offloaded,
            flops=flops,
            received=received,
            roofline=predict_time(config, self.topology, sizes, busiest, parameters, saved, received),
        )

    def _flops(self, config: RunConfig, sizes: dict[str, int], saved: SavedByLayers) -> tuple[StepFlops, float]:
        """(FLOPs of a step on all chips, FLOPs that the busiest chip executes)."""
        training, chips, length = config.training, self.topology.size, config.data.sequence_length
        layout, frozen = layout_of(config, sizes), config.lora is not None
        shared = SharedRows.of(layout, length, config.model.sliding_window, LANES)
        block = block_of(training.attention_block_size, length, shared)
        flops = step_flops(config.model, training.batch_size, length, self.kernel, block, frozen)
        layers = saved.flops * training.gradient_accumulation_steps
        attention = 0
        if self.kernel in ("splash", "cudnn"):  # other kernels' matmuls are counted among the layers'
            attention = flops.kernels
            again = saved.kernels_again * config.model.num_hidden_layers
            attention += again * kernel_flops(config.model, training.batch_size, length, block)
        # The base below adapters gets no gradient, so one of the head's three matmuls is not done.
        passes = 2 if frozen else 3
        head = passes * training.batch_size * length * head_flops(config.model)
        teacher = self._parameters.teacher
        taught = 0 if teacher is None else forward_flops(teacher, training.batch_size, length)
        update = muon_flops(config, self._parameters.abstract, layout)
        executed = layers * chips + attention + head + taught + update * chips
        busiest = layers + (attention * busiest_share(config, layout) + head + taught) / chips + update
        return dataclasses.replace(flops, model=flops.model + taught, executed=executed), busiest
