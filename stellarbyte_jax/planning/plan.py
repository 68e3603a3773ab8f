"""A run on a machine: whether it fits, how fast it is at best, what it costs and what binds."""

import dataclasses
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.placement import check_micro_batch
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.model.flops import StepFlops, step_flops
from stellarbyte_jax.planning.memory import Memory, predict_memory
from stellarbyte_jax.planning.parameters import count_parameters
from stellarbyte_jax.planning.program import kernel_of
from stellarbyte_jax.planning.roofline import Roofline, predict_time
from stellarbyte_jax.planning.saved import SavedByLayers, saved_by_layers
from stellarbyte_jax.planning.topology import Topology, mesh_sizes
from stellarbyte_jax.sharding import LOGICAL_AXIS_RULES


@dataclass(frozen=True)
class Plan:
    """What is predicted of a run."""

    config: RunConfig
    topology: Topology
    mesh: dict[str, int]
    kernel: str
    parameters: int
    active_parameters: int
    memory: Memory
    flops: StepFlops
    roofline: Roofline

    @property
    def fits(self) -> bool:
        """Whether each chip can hold what it must."""
        return self.memory.total <= self.topology.chip.hbm_bytes

    @property
    def tokens_a_step(self) -> int:
        """Of all chips, padding counted."""
        return self.config.training.batch_size * self.config.data.sequence_length

    @property
    def tokens_per_second(self) -> float:
        """At most."""
        return self.tokens_a_step / self.roofline.step_seconds

    @property
    def mfu(self) -> float:
        """At most: the share of the chips' peak that goes into the model's own FLOPs."""
        chip = self.topology.chip
        peak = chip.peak_flops[self.config.training.dtype] * self.topology.size
        return self.flops.model / self.roofline.step_seconds / peak

    @property
    def binds(self) -> str:
        """What has to give first for the run to go, or to go faster."""
        return self.roofline.binds if self.fits else "memory"

    def cost(self, tokens: float, price: float | None) -> tuple[float, float | None]:
        """(hours, US dollars) that so many tokens take at least, at `price` a chip and hour or the list price."""
        hours = tokens / self.tokens_per_second / 3600
        price = self.topology.chip.price if price is None else price
        return hours, None if price is None else hours * self.topology.size * price

    def to_dict(self, tokens: float | None = None, price: float | None = None) -> dict[str, Any]:
        """For JSON: bytes, seconds and FLOPs; memory is one chip's. `tokens` adds their time and cost."""
        run = {} if tokens is None else dict(zip(("hours", "dollars"), self.cost(tokens, price), strict=True))
        return {
            "topology": self.topology.name,
            "slices": self.topology.slices,
            "chips": self.topology.size,
            "mesh": self.mesh,
            "attention_kernel": self.kernel,
            "parameters": self.parameters,
            "active_parameters": self.active_parameters,
            "memory": {
                "moment": self.memory.moment,
                **self.memory.parts(),
                "total": self.memory.total,
                "hbm": int(self.topology.chip.hbm_bytes),
            },
            "fits": self.fits,
            "tokens_a_step": self.tokens_a_step,
            "flops_a_step": asdict(self.flops),
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
        UserError: the trainer cannot do that, or the mesh does not fit the topology.
    """
    kernel = kernel_of(config, topology.chip.platform)
    check_possible(config, topology, kernel)
    return predict(config, topology, kernel)


def predict(
    config: RunConfig,
    topology: Topology,
    kernel: str,
    saved_by: Callable[[RunConfig, int, int, str], SavedByLayers] = saved_by_layers,
) -> Plan:
    """As make_plan, once check_possible has nothing against it."""
    sizes = mesh_sizes(config.mesh, topology)
    training, model, platform = config.training, config.model, topology.chip.platform
    rows = check_micro_batch(training, {name: sizes[name] for name in LOGICAL_AXIS_RULES["batch"]})
    saved = saved_by(config, rows, sizes["tensor"], platform)
    memory = predict_memory(config, sizes, saved, platform)
    flops = step_flops(model, training.batch_size, config.data.sequence_length, kernel)
    again = saved.recomputed * topology.size * training.gradient_accumulation_steps
    flops = dataclasses.replace(flops, executed=flops.executed + again)
    roofline = predict_time(config, topology, sizes, flops, memory, saved)
    return Plan(config, topology, sizes, kernel, *count_parameters(model), memory, flops, roofline)


def check_possible(config: RunConfig, topology: Topology, kernel: str) -> None:
    """Refuses what the trainer cannot do yet: a plan for it would be a promise."""
    if config.lora is not None:
        raise UserError("lora: adapters cannot be planned yet; leave lora out to plan the training of all weights")
    for axis in ("expert", "context"):
        size = getattr(config.mesh, axis)
        if size != 1:
            raise UserError(f"mesh.{axis} {size} cannot be planned yet: plan with mesh.{axis} 1")
    if kernel == "splash" and topology.chip.platform == "gpu":
        raise UserError("training.attention_kernel splash is for TPUs: use auto, cudnn or reference on GPUs")
    if kernel == "cudnn" and topology.chip.platform == "tpu":
        raise UserError("training.attention_kernel cudnn is for GPUs: use auto, splash or reference on TPUs")
