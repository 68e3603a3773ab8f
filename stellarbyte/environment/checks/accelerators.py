"""Checks that JAX and torch can use the accelerators that there are."""

from collections.abc import Mapping
from typing import Any

from stellarbyte.environment.accelerators import Accelerators
from stellarbyte.environment.finding import Finding, well
from stellarbyte.environment.versions import installed

CHECK = "devices"
_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")


def check_accelerators(found: Accelerators, environment: Mapping[str, str]) -> list[Finding]:
    """What keeps JAX or torch from a device, and what was installed for a device that is not there."""
    findings = [*_jax(found, environment), *_torch(found, environment)]
    if found.cluster.error is not None:
        words = f"a cluster is here, but JAX cannot join it: {found.cluster.error}"
        findings.append(Finding(CHECK, "note", words, "--distributed.detect false"))
    if findings:
        return findings
    return well(CHECK, "; ".join(_words(found)) or "neither JAX nor torch is installed")


def _jax(found: Accelerators, environment: Mapping[str, str]) -> list[Finding]:
    if found.jax.error is not None:
        return [Finding(CHECK, "wrong", f"JAX finds no devices: {found.jax.error}", _mend_jax(found))]
    if found.jax.value is None:
        return []
    plugin = next((name for name in _PLUGINS if installed(name) is not None), None)
    backend = found.jax.value["backend"]
    asked = environment.get("JAX_PLATFORMS")
    findings = []
    if plugin is not None and installed(plugin) != installed("jaxlib"):
        words = f"{plugin} {installed(plugin)} and jaxlib {installed('jaxlib')} differ, so that JAX leaves the GPU out"
        findings.append(Finding(CHECK, "wrong", words, f"pip install {plugin}=={installed('jaxlib')}"))
    if backend == "cpu" and asked and "cpu" in asked and (found.gpus or found.tpu):
        words = f"JAX_PLATFORMS={asked} keeps JAX from the {'GPU' if found.gpus else 'TPU'} that is here"
        findings.append(Finding(CHECK, "note", words, "unset JAX_PLATFORMS"))
    elif backend == "cpu" and found.gpus and plugin is None:
        words = f"{found.gpus[0]['name']} is here, but JAX is installed for CPUs"
        findings.append(Finding(CHECK, "wrong", words, "pip install 'stellarbyte[cuda]'"))
    elif backend == "cpu" and found.gpus:
        words = f"{found.gpus[0]['name']} and {plugin} are here, but JAX sees only CPUs"
        mend = "python -c 'import jax; jax.devices(\"cuda\")' says why"
        findings.append(Finding(CHECK, "wrong", words, mend))
    elif backend == "cpu" and found.tpu:
        words = "a TPU is here, but JAX sees only CPUs"
        mend = "pip install 'stellarbyte[tpu]'" if installed("libtpu") is None else "stop the process that holds it"
        findings.append(Finding(CHECK, "wrong", words, mend))
    elif not found.gpus and plugin is not None and backend == "cpu":
        words = f"{plugin} is installed, but there is no NVIDIA GPU here, or no driver: JAX uses the CPU"
        findings.append(Finding(CHECK, "note", words, "nvidia-smi says whether the driver sees one"))
    elif not found.tpu and installed("libtpu") is not None and backend == "cpu":
        words = "libtpu is installed, but there is no TPU here: JAX starts noisily and uses the CPU"
        findings.append(Finding(CHECK, "note", words, "pip uninstall libtpu"))
    return findings


def _torch(found: Accelerators, environment: Mapping[str, str]) -> list[Finding]:
    if found.torch.error is not None:
        mend = f"pip install --force-reinstall torch=={installed('torch')}"
        return [Finding(CHECK, "wrong", f"torch finds no devices: {found.torch.error}", mend)]
    if found.torch.value is None or not found.gpus:
        return []
    built, name = found.torch.value["cuda"], found.gpus[0]["name"]
    if built is None and found.torch.value["hip"] is None:
        words = f"{name} is here, but torch is built for CPUs"
        return [Finding(CHECK, "wrong", words, "pip install --force-reinstall torch, from PyTorch's index for CUDA")]
    if found.torch.value["cuda_usable"]:
        return []
    if environment.get("CUDA_VISIBLE_DEVICES", "unset") in ("", "-1"):
        words = "CUDA_VISIBLE_DEVICES hides every GPU from torch"
        return [Finding(CHECK, "note", words, "unset CUDA_VISIBLE_DEVICES")]
    if built is not None and _newer(built, found.driver_cuda):
        words = f"torch is built for CUDA {built}, but the driver runs CUDA {found.driver_cuda} at most"
        mend = f"update the driver, or install a torch that is built for CUDA {found.driver_cuda}"
        return [Finding(CHECK, "wrong", words, mend)]
    words = f"{name} is here, but torch cannot use it"
    return [Finding(CHECK, "wrong", words, "python -c 'import torch; torch.cuda.init()' says why")]


def _newer(built: str, driver: str | None) -> bool:
    """Whether a driver is too old: within a major version of CUDA, any driver of that major runs what was built."""
    return driver is not None and int(built.partition(".")[0]) > int(driver.partition(".")[0])


def _mend_jax(found: Accelerators) -> str:
    if "already in use" in str(found.jax.error):
        return "stop the process that holds the device"
    return f"pip install --force-reinstall jax=={installed('jax')} jaxlib=={installed('jaxlib')}"


def _words(found: Accelerators) -> list[str]:
    words = []
    for name, answer in (("JAX", found.jax), ("torch", found.torch)):
        value: Mapping[str, Any] | None = answer.value
        if value is not None:
            kinds = list(dict.fromkeys(each["kind"] for each in value["devices"])) or ["CPUs alone"]
            words.append(f"{name} sees {', '.join(kinds)}")
    return words
