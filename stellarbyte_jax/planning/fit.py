"""Predicts, before anything is compiled, whether a run fits the devices at hand."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from stellarbyte.chips import GIB, chip_of
from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.auto_remat import with_remat
from stellarbyte_jax.planning.layer_traces import LayerTraces
from stellarbyte_jax.planning.memory import Memory, predict_memory, tokens_a_chip
from stellarbyte_jax.planning.parameters import counter_of
from stellarbyte_jax.planning.program import layout_of
from stellarbyte_jax.sharding import mesh_sizes

# How far off the prediction may be: a run that misses by less is tried, with a warning.
_ERROR = 0.1

_TRY_ANYWAY = "or try it all the same with --no-memory-check"


def check_fits(config: RunConfig, devices: Sequence[Any]) -> str | None:
    """A warning if a run may not fit these devices, else None. On CPUs only the least that a run needs is looked at.

    Nothing is checked where neither the chip's memory nor the host's is known.

    Raises:
        UserError: the run will not fit; the sentence says what it needs, what there is, and what to change.
    """
    sizes = mesh_sizes(config.mesh, len(devices), "devices", "there are")
    here = [device for device in devices if device.process_index == jax.process_index()]
    platform = here[0].platform
    if platform == "cpu":
        _check_host(config, sizes, len(here))
        return None
    available = _memory_of(here[0])
    if available is None:
        return None
    foreseer = Foreseer(config, sizes, platform)
    needed = foreseer.memory(config).total
    if needed <= available:
        return None
    kind = here[0].device_kind
    if needed <= available * (1 + _ERROR):
        return (
            f"this run may not fit: it needs some {needed / GIB:.2f} GiB of a {kind}, which has {available / GIB:.2f}"
        )
    raise UserError(
        f"this run does not fit: it needs {needed / GIB:.2f} GiB of a {kind}, which has {available / GIB:.2f}; "
        f"{_advice(config, foreseer, available)}, {_TRY_ANYWAY}"
    )


class Foreseer:
    """Predicts the memory of one device for variants of a run; what they have in common is traced once."""

    def __init__(self, config: RunConfig, sizes: dict[str, int], platform: str) -> None:
        self.sizes, self._platform = sizes, platform
        self.traces = LayerTraces(config, platform)
        self._parameters = counter_of(config).local(config, sizes, platform)

    def memory(self, config: RunConfig) -> Memory:
        """The memory of one device at its fullest moment."""
        # The trainer refuses a batch that the mesh does not divide.
        rows = max(1, tokens_a_chip(config, layout_of(config, self.sizes))[0])
        saved = self.traces.saved(config.training.remat, self.sizes, rows)
        return predict_memory(config, self.sizes, self._parameters, saved, self._platform)


def _advice(config: RunConfig, foreseer: Foreseer, available: float) -> str:
    """What to set so that the run fits with a twentieth to spare: the fewest micro-batches, and remat if needed."""
    rows = config.training.batch_size // layout_of(config, foreseer.sizes).parts("batch")
    for policy in dict.fromkeys((config.training.remat, "full")):
        steps = config.training.gradient_accumulation_steps
        while rows % steps == 0:
            training = dataclasses.replace(config.training, gradient_accumulation_steps=steps)
            needed = foreseer.memory(with_remat(dataclasses.replace(config, training=training), policy)).total
            if needed <= 0.95 * available:
                return (
                    f"set training.gradient_accumulation_steps {steps} and training.remat {policy}, which need "
                    f"{needed / GIB:.2f}"
                )
            steps *= 2
    return "use more devices with mesh.fsdp or mesh.tensor, fewer rows (training.batch_size) or a smaller model"


def _memory_of(device: Any) -> float | None:
    """Bytes of a device that a program may use: as JAX reports them, or else by the table of chips."""
    stats = device.memory_stats() if hasattr(device, "memory_stats") else None
    limit = (stats or {}).get("bytes_limit")
    chip = chip_of(device.device_kind)
    return limit or (None if chip is None else chip.hbm_bytes)


def _check_host(config: RunConfig, sizes: dict[str, int], devices: int) -> None:
    """Refuses a run whose state, batch and one layer's input alone are more than the host's memory."""
    available = host_memory()
    if available is None:
        return
    layout = layout_of(config, sizes)
    parameters = counter_of(config).local(config, sizes, "cpu")
    # Trained parameters have a gradient, and perhaps an average.
    state = (2 if config.training.ema_decay is None else 3) * parameters.trained
    state += parameters.optimizer + parameters.frozen + parameters.teacher
    rows, length = tokens_a_chip(config, layout)
    tokens = rows * length * (16 * config.training.gradient_accumulation_steps + 4 * config.model.hidden_size)
    needed = devices * (state + tokens)
    if needed > available:
        raise UserError(
            f"this run does not fit: it needs at least {needed / GIB:.1f} GiB ({devices * state / GIB:.1f} for the "
            f"model's state, {devices * tokens / GIB:.1f} for its batch), and this machine has "
            f"{available / GIB:.1f}; use a smaller model, or fewer rows (training.batch_size, "
            f"training.gradient_accumulation_steps), {_TRY_ANYWAY}"
        )


def host_memory() -> float | None:
    """Bytes of this machine's memory, or of what its container may use; None where the system does not say."""
    try:
        available = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return available
    return min(available, float(limit)) if limit.isdecimal() else available
