"""MFU by hand, and the memory of the fullest device."""

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax.sharding import Mesh

from stellarbyte_jax.config import MeshConfig, RunConfig
from stellarbyte_jax.lora_config import LoRAConfig
from stellarbyte_jax.model.flops import head_flops, layer_matmul_flops, step_flops
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training.watching.utilization import Utilization


def devices_of(kind: str, *stats: Any) -> Any:
    """A mesh of devices that say so of themselves."""
    devices = [SimpleNamespace(device_kind=kind, memory_stats=lambda found=found: found) for found in stats]
    return SimpleNamespace(devices=SimpleNamespace(flat=devices), size=len(devices), local_devices=devices)


def test_mfu_is_the_models_flops_over_the_peak(run_config: Callable[..., RunConfig]) -> None:
    config = run_config(training={"dtype": "bfloat16"})
    model, tokens = config.model, 4 * 24
    weights = 3 * tokens * (model.num_hidden_layers * layer_matmul_flops(model) + head_flops(model))
    used = Utilization.of(config, devices_of("TPU v5 lite", {}, {}))
    assert used.flops == weights + step_flops(model, 4, 24).attention
    figures = used.speed(seconds=2.0)
    assert figures["mfu"] == pytest.approx(used.flops / 2 / (2 * 197e12))
    assert figures["tflops_per_second"] == pytest.approx(figures["mfu"] * 197)
    half = Utilization.of(dataclasses.replace(config, training=dataclasses.replace(config.training, dtype="float32")),
                          devices_of("NVIDIA H100 80GB HBM3", {}))  # fmt: skip
    assert half.peak == 494e12

    frozen = dataclasses.replace(config, init_from="other", lora=LoRAConfig("all-linear"))
    assert Utilization.of(frozen, devices_of("cpu", {})).flops == used.flops - weights // 3


def test_an_unknown_chip_has_a_speed_and_no_mfu(run_config: Callable[..., RunConfig]) -> None:
    mesh: Mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    used = Utilization.of(run_config(), mesh)
    assert used.speed(0.5) == {"tflops_per_second": pytest.approx(used.flops / 2 / 0.5 / 1e12)}
    assert used.memory() == {}, "the CPU says nothing of its memory"


def test_memory_is_that_of_the_fullest_device(run_config: Callable[..., RunConfig]) -> None:
    stats = [
        {"bytes_in_use": 5 - n, "peak_bytes_in_use": 10 + n, "bytes_limit": 16, "num_allocs": 3} for n in (0, 2, 1)
    ]
    used = Utilization.of(run_config(), devices_of("TPU v4", *stats))
    assert used.memory() == {"hbm_bytes": 3, "hbm_peak_bytes": 12, "hbm_limit_bytes": 16}
