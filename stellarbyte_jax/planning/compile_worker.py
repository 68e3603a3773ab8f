"""Compiles a run's train step, for TPUs that are not here or a CPU, in a process of its own: JSON in, JSON out."""

import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import run_config_from_dict
from stellarbyte_jax.planning.hlo import read_program
from stellarbyte_jax.planning.program import abstract_batch
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.gradual_pruning import GradualPruning
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.start import placed, state_shardings
from stellarbyte_jax.training.state import init_params, run_model, run_state
from stellarbyte_jax.training.step import on_mesh, run_train_step
from stellarbyte_jax.training.teacher import Teacher


def compile_step(config: RunConfig, topology: str | None) -> dict[str, Any]:
    """The compiler's report on the train step, placed as the training loop places it, or its refusal.

    topology: a slice of TPUs; None for one CPU.
    """
    devices = jax.devices("cpu")[:1] if topology is None else _devices(topology, config.mesh.slices)
    layout = Layout.of(config.mesh, make_mesh(config.mesh, devices))
    training, platform = config.training, "cpu" if topology is None else "tpu"
    graphdef, abstract_params = run_model(config, layout, platform)
    optimizer = run_optimizer(config, abstract_params, layout)
    shardings, frozen_shardings = state_shardings(config, abstract_params, optimizer, layout)
    pruning, teacher = GradualPruning.of(config, optimizer), Teacher.of(config, layout, platform=platform)
    train_step = run_train_step(config, graphdef, optimizer, pruning, None if teacher is None else teacher.graphdef)
    taught_by = {} if teacher is None else teacher.shardings
    step = on_mesh(train_step, layout, shardings, frozen_shardings, taught_by)
    state = placed(jax.eval_shape(lambda: run_state(config, optimizer)), shardings)
    frozen = {}
    if config.lora is not None:
        frozen = placed(jax.eval_shape(lambda: init_params(config.model, config.seed)), frozen_shardings)
    batch = abstract_batch(training.batch_size, config.data.sequence_length, layout.sharding("batch", "length"))
    if teacher is not None:
        taught_by = placed(jax.eval_shape(lambda: init_params(teacher.model, 0)), teacher.shardings)
    try:
        compiled = step.trace(state, batch, frozen, taught_by).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return {"refused": _reason(str(error))}
    memory = compiled.memory_analysis()
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    if topology is None:  # all temporaries are one block, and no peak is told
        return {"arguments": arguments, "temporaries": temporaries}
    program = dataclasses.asdict(read_program(compiled.as_text()))
    peak = memory.peak_memory_in_bytes
    return {"arguments": arguments, "temporaries": temporaries, "peak": peak, "program": program}


def _devices(topology: str, slices: int) -> Sequence[jax.Device]:
    sides = [int(side) for side in topology.partition(":")[2].split("x")]
    # A host has 2 x 2 chips, or all chips of a smaller topology.
    host = [min(2, side) for side in sides[:2]] + [1]
    options = {"chips_per_host_bounds": host, "num_slices": slices}
    return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices


def _reason(message: str) -> str:
    """The one sentence that matters in the compiler's page of text."""
    used = re.search(r"Used ([\d.]+\w) of ([\d.]+\w) hbm", message)
    used = used or re.search(r"HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", message)
    if used:
        return f"out of memory, {used[1]}iB are needed and {used[2]}iB of HBM are left for them"
    return message.splitlines()[0][:300]


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps(compile_step(run_config_from_dict(request["config"], "the plan"), request["topology"])))
