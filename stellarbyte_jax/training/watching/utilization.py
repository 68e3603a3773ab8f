"""Measures how much of the devices a run uses: FLOPs against their peak, bytes against their memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from stellarbyte.chips import chip_of
from stellarbyte_jax.batch_stages import Stage
from stellarbyte_jax.config import ByteConfig, RunConfig
from stellarbyte_jax.model.flops import forward_flops, step_flops


@dataclass(frozen=True)
class Utilization:
    """The FLOPs of a step by the model's mathematics, and the devices that do them.

    flops: FLOPs of one step over all devices, without work that the program repeats (remat) or does in vain.
    devices: the number of devices.
    peak: FLOPs per second of one device in the run's compute dtype; None if the chip is not known, as for a CPU.
    local: the devices of this process.
    """

    flops: int
    devices: int
    peak: float | None
    local: Sequence[jax.Device]

    @classmethod
    def of(
        cls, config: RunConfig, mesh: Mesh, stage: Stage | None = None, teacher: ByteConfig | None = None
    ) -> "Utilization":
        """The utilization of a run's steps on a mesh: those of a stage, by default of the last one.

        teacher: the model that the run learns from, which makes a forward pass in each step.
        """
        stage = stage or config.stages[-1]
        rows = stage.batch_size * config.data.sequence_length // stage.sequence_length
        flops = step_flops(config.model, rows, stage.sequence_length, frozen=config.lora is not None)
        taught = 0 if teacher is None else forward_flops(teacher, rows, stage.sequence_length)
        chip = chip_of(mesh.devices.flat[0].device_kind)
        peak = None if chip is None else chip.peak_flops[config.training.dtype]
        return cls(flops.model + taught, mesh.size, peak, mesh.local_devices)

    def speed(self, seconds: float) -> dict[str, float]:
        """Figures of a step that took `seconds`: `tflops_per_second` of one device and, for a known chip, `mfu`.

        mfu is model FLOPs utilization (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), 1 at the chip's peak.
        """
        rate = self.flops / self.devices / seconds
        figures = {"tflops_per_second": rate / 1e12}
        return figures if self.peak is None else figures | {"mfu": rate / self.peak}

    def memory(self) -> dict[str, int]:
        """Memory of this process's fullest device in bytes: in use, peak, and limit. Empty on a CPU.

        The runtime's own bookkeeping answers, so no device is waited for.
        """
        stats = [found for device in self.local if (found := device.memory_stats())]
        if not stats:
            return {}
        fullest = max(stats, key=lambda found: found.get("peak_bytes_in_use", 0))
        names = {"bytes_in_use": "hbm_bytes", "peak_bytes_in_use": "hbm_peak_bytes", "bytes_limit": "hbm_limit_bytes"}
        return {ours: fullest[theirs] for theirs, ours in names.items() if theirs in fullest}
