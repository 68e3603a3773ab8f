"""Tells which accelerators there are: as the system, JAX and torch see them, each asked in a process of its own."""

import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellarbyte.environment.children import Answer, ask_python, run
from stellarbyte.environment.versions import installed

_ASK = "import importlib, json, sys; print(json.dumps(getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()))"
_NVIDIA = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits")
_SECONDS_OF_SMI = 20.0

# Nothing may take the memory of a device that a run uses, or fill the report with remarks.
_QUIET = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "NONE"}


@dataclass(frozen=True)
class Accelerators:
    """What there is.

    gpus: NVIDIA's GPUs as the driver lists them, each with name, driver and MiB of memory. driver_cuda: the newest
    CUDA that the driver can run, such as "12.4"; None without a driver. tpu: whether the system has a TPU's device.
    jax, torch, cluster: what these say; an Answer without value and error where the library is not installed.
    """

    gpus: list[dict[str, str]]
    driver_cuda: str | None
    tpu: bool
    jax: Answer
    torch: Answer
    cluster: Answer


def accelerators(environment: Mapping[str, str]) -> Accelerators:
    """Asks them all, at once; it takes as long as the slowest, which is a few seconds on a warm disk."""
    environment = {**environment, **_QUIET}
    with ThreadPoolExecutor(4) as threads:
        smi = threads.submit(_gpus, environment)
        jax = threads.submit(_asked, "jax", "stellarbyte_jax.processes.seen", "devices", environment)
        torch = threads.submit(_asked, "torch", "stellarbyte_torch.seen", "devices", environment)
        cluster = threads.submit(_asked, "jax", "stellarbyte_jax.processes.seen", "cluster", environment)
        gpus, cuda = smi.result()
        return Accelerators(gpus, cuda, _has_tpu(), jax.result(), torch.result(), cluster.result())


def _asked(library: str, module: str, function: str, environment: Mapping[str, str]) -> Answer:
    return Answer() if installed(library) is None else ask_python(_ASK, environment, module, function)


def _gpus(environment: Mapping[str, str]) -> tuple[list[dict[str, str]], str | None]:
    if shutil.which("nvidia-smi", path=environment.get("PATH")) is None:
        return [], None
    listed, error = run(_NVIDIA, environment, _SECONDS_OF_SMI)
    if error is not None:
        return [], None
    rows = [[word.strip() for word in line.split(",")] for line in listed.splitlines() if line.count(",") == 2]
    gpus: list[dict[str, Any]] = [dict(zip(("name", "driver", "memory_mib"), row, strict=True)) for row in rows]
    head, _ = run(["nvidia-smi"], environment, _SECONDS_OF_SMI)
    found = re.search(r"CUDA Version: *([\d.]+)", head)
    return gpus, None if found is None else found[1]


def _has_tpu() -> bool:
    # Which PCI vendor a vfio device has is in its group; Google's is 0x1ae0.
    if Path("/dev/accel0").exists():
        return True
    if not Path("/dev/vfio").is_dir():
        return False
    for vendor in Path("/sys/bus/pci/devices").glob("*/vendor"):
        try:
            if vendor.read_text(encoding="utf-8").strip() == "0x1ae0":
                return True
        except OSError:
            continue
    return False


def told(found: Accelerators) -> dict[str, Any]:
    """The same, ready for JSON."""

    def answer(given: Answer) -> Any:
        return {"error": given.error} if given.error is not None else given.value

    return {
        "gpus": found.gpus,
        "driver_cuda": found.driver_cuda,
        "tpu": found.tpu,
        "jax": answer(found.jax),
        "torch": answer(found.torch),
        "cluster": answer(found.cluster),
    }
