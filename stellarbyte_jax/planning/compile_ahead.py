"""Asks the real compiler about a train step, in a process that has the environment it needs."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import to_dict
from stellarbyte_jax.planning.hlo import Collective, ProgramReport
from stellarbyte_jax.planning.topology import Topology
from stellarbyte_jax.sharding import mesh_sizes

# Google Cloud's names of slices. Most chips are counted by their cores, two a chip.
_ACCELERATORS = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}


@dataclass(frozen=True)
class Compiled:
    """Bytes of one chip by the compiler's own analysis, and a report of its program.

    peak: the most bytes that are alive at once. arguments + temporaries may be more, because of gaps between arrays.
    """

    arguments: int
    temporaries: int
    peak: int
    program: ProgramReport

    @property
    def total(self) -> int:
        """The bytes that the compiler compares with the HBM."""
        return self.arguments + self.temporaries

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class CompiledHere:
    """Bytes of a train step on one CPU, by XLA: its state and batch, and the block of all that comes and goes."""

    arguments: int
    temporaries: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.arguments + self.temporaries


def compile_ahead(config: RunConfig, topology: Topology) -> Compiled:
    """Compiles the run's train step for the topology. It needs no TPU, but libtpu and some minutes.

    Raises:
        UserError: libtpu is missing, the topology is of GPUs, or the compiler refuses the program as too large.
    """
    if topology.chip.platform != "tpu":
        raise UserError(f"--compile knows TPUs only, not --topology {topology}: leave --compile out")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("--compile needs the TPU compiler: pip install 'stellarbyte[tpu]' in an environment of its own")
    name, cores = _ACCELERATORS[topology.chip.name]
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": f"{name}-{topology.size * cores}",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it uses no TPU, so it need not be the only process that loads libtpu
    }
    answer = _ask(config, topology.name, environment, f"--compile: the compiler's process failed for {topology}")
    if "refused" in answer:
        raise UserError(f"--compile: the TPU compiler refuses this step for {topology}: {answer['refused']}")
    program = answer["program"]
    collectives = {kind: Collective(**entry) for kind, entry in program["collectives"].items()}
    report = ProgramReport(collectives, program["cycles"], program["kernels"])
    return Compiled(answer["arguments"], answer["temporaries"], answer["peak"], report)


def compile_here(config: RunConfig) -> CompiledHere:
    """Compiles the run's train step for one CPU of this machine, which takes a second or two a layer.

    Raises:
        UserError: the mesh needs more than one device, or the step cannot be compiled.
    """
    mesh_sizes(config.mesh, 1, "devices", "a CPU is")
    answer = _ask(config, None, {"JAX_PLATFORMS": "cpu"}, "--topology cpu: the compiler's process failed")
    if "refused" in answer:
        raise UserError(f"--topology cpu: XLA refuses this step: {answer['refused']}")
    return CompiledHere(answer["arguments"], answer["temporaries"])


def _ask(config: RunConfig, topology: str | None, environment: dict[str, str], failed: str) -> dict[str, Any]:
    """The answer of the compiler's process."""
    # `env` adds these to the user's environment, which no file but the command line may read.
    settings = [f"{name}={value}" for name, value in environment.items()]
    done = subprocess.run(
        ["env", *settings, sys.executable, "-m", "stellarbyte_jax.planning.compile_worker"],
        input=json.dumps({"config": to_dict(config), "topology": topology}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{failed}: {last[:300]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
