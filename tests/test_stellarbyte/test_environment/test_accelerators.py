"""What keeps JAX or torch from a device is told, and what was installed for a device that is not there."""

from typing import Any

import pytest

from stellarbyte.environment.accelerators import Accelerators
from stellarbyte.environment.checks import accelerators
from stellarbyte.environment.children import Answer

GPU = {"name": "NVIDIA H200", "driver": "550.1", "memory_mib": "143771"}


def _found(
    jax: Any = None, torch: Any = None, gpus: bool = True, driver: str = "12.4", tpu: bool = False
) -> Accelerators:
    answers = [each if isinstance(each, Answer) else Answer(each) for each in (jax, torch)]
    return Accelerators([GPU] if gpus else [], driver if gpus else None, tpu, *answers, Answer())


CPU = {"backend": "cpu", "devices": [{"kind": "cpu", "memory_bytes": None}]}
ON_GPU = {"backend": "gpu", "devices": [{"kind": "NVIDIA H200", "memory_bytes": 1}]}
TORCH_CPU = {"cuda": None, "hip": None, "cuda_usable": False, "devices": []}
TORCH_13 = TORCH_CPU | {"cuda": "13.0"}
PLUGIN = {"jax": "0.12.0", "jaxlib": "0.12.0", "jax-cuda12-plugin": "0.12.0"}


@pytest.mark.parametrize(
    ("found", "there", "environment", "level", "words", "mend"),
    [
        (_found(ON_GPU), PLUGIN, {}, "well", "JAX sees NVIDIA H200", ""),
        (_found(CPU), {}, {}, "wrong", "JAX is installed for CPUs", "'stellarbyte[cuda]'"),
        (_found(CPU), PLUGIN, {}, "wrong", "jax-cuda12-plugin are here, but JAX sees only CPUs", "says why"),
        (_found(CPU), PLUGIN, {"JAX_PLATFORMS": "cpu"}, "note", "JAX_PLATFORMS=cpu keeps JAX from", "unset JAX_PL"),
        (_found(ON_GPU), PLUGIN | {"jaxlib": "0.11"}, {}, "wrong", "jaxlib 0.11 differ", "plugin==0.11"),
        (_found(CPU, gpus=False), PLUGIN, {}, "note", "there is no NVIDIA GPU here", "nvidia-smi"),
        (_found(CPU, gpus=False), {"libtpu": "1"}, {}, "note", "there is no TPU here", "pip uninstall libtpu"),
        (_found(CPU, gpus=False, tpu=True), {}, {}, "wrong", "JAX sees only CPUs", "'stellarbyte[tpu]'"),
        (_found(CPU, gpus=False, tpu=True), {"libtpu": "1"}, {}, "wrong", "JAX sees only CPUs", "stop the process"),
        (_found(Answer(error="E: x")), PLUGIN, {}, "wrong", "JAX finds no devices: E: x", "force-reinstall jax==0.12"),
        (_found(Answer(error="TPU already in use")), PLUGIN, {}, "wrong", "already in use", "stop the process"),
        (_found(torch=TORCH_CPU), {}, {}, "wrong", "torch is built for CPUs", "index for CUDA"),
        (_found(torch=TORCH_13), {}, {}, "wrong", "built for CUDA 13.0, but the driver runs CUDA 12.4", "driver"),
        (_found(torch=TORCH_13, driver="13.1"), {}, {}, "wrong", "but torch cannot use it", "says why"),
        (_found(torch=TORCH_13), {}, {"CUDA_VISIBLE_DEVICES": ""}, "note", "hides every GPU", "unset CUDA_V"),
        (_found(torch=Answer(error="E: y")), {"torch": "2"}, {}, "wrong", "torch finds no devices: E: y", "torch==2"),
        (_found(torch=TORCH_13 | {"cuda_usable": True}), {}, {}, "well", "torch sees CPUs alone", ""),
        (_found(gpus=False), {}, {}, "well", "neither JAX nor torch is installed", ""),
    ],
)
def test_accelerators(
    found: Accelerators,
    there: dict[str, str],
    environment: dict[str, str],
    level: str,
    words: str,
    mend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accelerators, "installed", there.get)
    (finding,) = accelerators.check_accelerators(found, environment)
    assert finding.level == level and words in finding.words and mend in finding.mend, finding


def test_a_cluster_that_cannot_be_joined() -> None:
    found = Accelerators([], None, False, Answer(), Answer(), Answer(error="UserError: no address"))
    (finding,) = accelerators.check_accelerators(found, {})
    assert finding.level == "note" and "UserError: no address" in finding.words
