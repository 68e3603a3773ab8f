"""Foresees the training of a model on one device, for the report: memory by remat, and what fits on each chip."""

from collections.abc import Callable
from dataclasses import replace

from stellarbyte.chips import CHIPS
from stellarbyte.errors import UserError
from stellarbyte.report.memory import Foreseen, TrainingMemory
from stellarbyte_jax.config import ByteConfig, DataConfig, MeshConfig, RunConfig, SourceConfig, TrainingConfig
from stellarbyte_jax.model.flops import kernel_flops
from stellarbyte_jax.planning.auto_remat import REMAT_POLICIES, with_remat
from stellarbyte_jax.planning.fit import Foreseer
from stellarbyte_jax.planning.memory import Memory
from stellarbyte_jax.planning.program import kernel_of

# What is told of memory is as on a GPU, where arrays have no padding.
_PLATFORMS = ("gpu", "tpu")
_MOST_ROWS = 1 << 24


def foresee(model: ByteConfig, run: RunConfig | None, rows: int, length: int) -> Foreseen:
    """What training needs on one device, by the planner.

    Args:
        model: the architecture.
        run: how it is trained; None for AdamW in bfloat16.
        rows: those of a micro-batch.
        length: the tokens of a row.

    Raises:
        UserError: the run trains on what is not there, such as the model that it learns from.
    """
    config = _on_one_device(model, run, rows, length)
    remarks, found = [], {}
    for platform in _PLATFORMS:
        try:
            found[platform] = _Device(config, platform)
            found[platform].memory("none", rows)
        except UserError as error:
            found.pop(platform, None)
            remarks.append(f"training on a {platform.upper()} is not foreseen, because {error}")
    if not found:
        return Foreseen(remarks=tuple(remarks))
    shown = next(iter(found.values()))
    return Foreseen(
        training=tuple(_told(remat, shown.memory(remat, rows), config, rows) for remat in REMAT_POLICIES),
        rows={
            chip.name: {remat: _most(chip.hbm_bytes, remat, found[chip.platform]) for remat in REMAT_POLICIES}
            for chip in CHIPS.values()
            if chip.platform in found
        },
        recomputed={remat: shown.recomputed(remat) for remat in REMAT_POLICIES},
        remarks=tuple(remarks),
    )


def _on_one_device(model: ByteConfig, run: RunConfig | None, rows: int, length: int) -> RunConfig:
    if run is None:
        data = DataConfig((SourceConfig("text"),), "tokenizer", "shards", sequence_length=length)
        run = RunConfig("run", model, data, TrainingConfig(max_steps=1000, batch_size=rows, dtype="bfloat16"))
    steps = run.training.gradient_accumulation_steps
    training = replace(run.training, attention_kernel="auto", batch_size=rows * steps, prune=None)
    return replace(run, model=model, mesh=MeshConfig(), training=training)


class _Device:
    """One device of a platform, and what it holds of a run for any remat and any number of rows."""

    def __init__(self, config: RunConfig, platform: str) -> None:
        self._config, self._platform = config, platform
        self._foreseer = Foreseer(config, dict.fromkeys(config.mesh.sizes, 1), platform)

    def memory(self, remat: str, rows: int) -> Memory:
        """The bytes at the fullest moment."""
        steps = self._config.training.gradient_accumulation_steps
        training = replace(self._config.training, batch_size=rows * steps)
        return self._foreseer.memory(with_remat(replace(self._config, training=training), remat))

    def recomputed(self, remat: str) -> float:
        """The FLOPs of a token that the layers compute a second time."""
        model, length = self._config.model, self._config.data.sequence_length
        foreseer = self._foreseer
        again, once = (foreseer.traces.saved(policy, foreseer.sizes, 1) for policy in (remat, "none"))
        flops = again.flops - once.flops
        if kernel_of(self._config, self._platform) in ("splash", "cudnn"):  # others' matmuls are among the layers'
            flops += again.kernels_again * model.num_hidden_layers * kernel_flops(model, 1, length, block=1)
        return flops / length


def _told(remat: str, memory: Memory, config: RunConfig, rows: int) -> TrainingMemory:
    weights, gradients = memory.parameters + memory.frozen + memory.teacher, memory.gradients + memory.micro_batches
    return TrainingMemory(
        remat=remat,
        rows=rows,
        length=config.data.sequence_length,
        dtype=config.training.dtype,
        weights=weights,
        gradients=gradients,
        optimizer=memory.optimizer,
        activations=memory.activations,
        working=memory.total - weights - gradients - memory.optimizer - memory.activations,
        moment=memory.moment,
    )


def _most(available: float, remat: str, device: _Device) -> int:
    """The most rows of a micro-batch that fit."""
    return _largest(lambda rows: device.memory(remat, rows).total <= available)


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number from 0 that fits, of those below _MOST_ROWS; fewer fit always."""
    if not fits(1):
        return 0
    low, high = 1, 2
    while high < _MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
