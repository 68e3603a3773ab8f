"""Searches other ways to do the same step on the same chips: meshes, micro-batches and remat policies."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.config import MeshConfig, RunConfig
from stellarbyte_jax.planning.auto_remat import REMAT_POLICIES, with_remat
from stellarbyte_jax.planning.plan import Plan, Planner
from stellarbyte_jax.planning.topology import Topology

# More chips on one layer's matrices than a host has are never faster.
_MOST_TENSOR = 8


def search(config: RunConfig, topology: Topology, progress: Callable[[int, int], None] = lambda *_: None) -> list[Plan]:
    """The Pareto-optimal plans that fit, the fastest first: no other has both more tokens/s and more memory to spare.

    The batch of a step stays as the config says; only the way to compute it varies.

    Raises:
        UserError: no plan fits; the sentence names the one that misses by least.
    """
    planner = Planner(config, topology)
    candidates = list(_candidates(config, topology))
    plans = []
    for done, candidate in enumerate(candidates):
        # A mesh that does not divide the model or the batch is no candidate.
        try:
            plans.append(planner.plan(candidate))
        except UserError as error:
            refusal = error
        progress(done + 1, len(candidates))
    if not plans:
        raise refusal
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        least = min(plans, key=lambda plan: plan.memory.total)
        missing = (least.memory.total - topology.chip.hbm_bytes) / 2**30
        raise UserError(
            f"--search: nothing fits {topology}; {describe(least)} comes nearest, {missing:.2f} GiB a chip too much: "
            "use more chips, or a smaller model"
        )
    return _pareto(fitting)


def describe(plan: Plan) -> str:
    """The options that select a plan, as on the command line."""
    training = plan.config.training
    mesh = " ".join(f"--mesh.{axis} {size}" for axis, size in plan.mesh.items() if size > 1 or axis == "data")
    return f"{mesh} --training.remat {training.remat} --training.gradient_accumulation_steps " + str(
        training.gradient_accumulation_steps
    )


def _candidates(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    for mesh in _meshes(config, topology.size):
        rows = config.training.batch_size // (mesh.data * mesh.fsdp * mesh.expert)
        for steps in _powers_of_two(rows):
            for remat in REMAT_POLICIES:
                training = dataclasses.replace(config.training, gradient_accumulation_steps=steps)
                yield with_remat(dataclasses.replace(config, mesh=mesh, training=training), remat)


def _meshes(config: RunConfig, chips: int) -> Iterator[MeshConfig]:
    """The meshes to try. Only models with experts use expert, and only batches of fewer rows than chips use context."""
    batch_size, experts = config.training.batch_size, config.model.num_experts
    for tensor in (size for size in (1, 2, 4, _MOST_TENSOR) if chips % size == 0):
        for expert in _divisors(experts) if experts else (1,):
            for context in _powers_of_two(chips // tensor) if batch_size < chips else (1,):
                rest, left = divmod(chips, tensor * expert * context)
                if left:
                    continue
                for data in _divisors(rest):
                    if batch_size % (rest * expert) == 0:
                        sizes: Any = {"data": data, "fsdp": rest // data, "expert": expert, "context": context}
                        yield dataclasses.replace(config.mesh, **sizes, tensor=tensor)


def _divisors(number: int) -> Iterator[int]:
    return (size for size in range(1, number + 1) if number % size == 0)


def _powers_of_two(number: int) -> Iterator[int]:
    """The powers of two that divide a number."""
    size = 1
    while number and number % size == 0:
        yield size
        size *= 2


def _pareto(plans: list[Plan]) -> list[Plan]:
    best: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (-plan.tokens_per_second, plan.memory.total)):
        if not best or plan.memory.total < best[-1].memory.total:
            best.append(plan)
    return best
