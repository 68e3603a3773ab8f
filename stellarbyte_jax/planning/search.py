"""Other ways of doing the same step on the same chips: meshes, micro-batches and remat policies."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator
from typing import Any

from stellarbyte_jax.config import MeshConfig, RunConfig, TrainingConfig
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.planning.plan import Plan, check_possible, predict
from stellarbyte_jax.planning.program import kernel_of
from stellarbyte_jax.planning.saved import SavedByLayers, saved_by_layers
from stellarbyte_jax.planning.topology import Topology

REMAT_POLICIES = typing.get_args(typing.get_type_hints(TrainingConfig)["remat"])

# More chips on one layer's matrices than a host has are never faster.
_MOST_TENSOR = 8


def search(config: RunConfig, topology: Topology, progress: Callable[[int, int], None] = lambda *_: None) -> list[Plan]:
    """Plans that fit of which none other has both more tokens/s and more memory to spare, the fastest first.

    The batch of a step stays what the config says: only how it is done varies.

    Raises:
        UserError: none fits; it names the one that misses by least.
    """
    kernel = kernel_of(config, topology.chip.platform)
    check_possible(config, topology, kernel)
    candidates = list(_candidates(config, topology))
    saved = _by_rows(config, topology.chip.platform)
    plans = []
    for done, candidate in enumerate(candidates):
        # A mesh that does not divide the model or the batch is no candidate.
        try:
            plans.append(predict(candidate, topology, kernel, saved))
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
    """What to set, as on the command line."""
    training = plan.config.training
    mesh = " ".join(f"--mesh.{axis} {size}" for axis, size in plan.mesh.items() if size > 1 or axis == "data")
    return f"{mesh} --training.remat {training.remat} --training.gradient_accumulation_steps " + str(
        training.gradient_accumulation_steps
    )


def _candidates(config: RunConfig, topology: Topology) -> Iterator[RunConfig]:
    for tensor in (size for size in (1, 2, 4, _MOST_TENSOR) if topology.size % size == 0):
        rest = topology.size // tensor
        for data in (size for size in range(1, rest + 1) if rest % size == 0):
            mesh: MeshConfig = dataclasses.replace(config.mesh, data=data, fsdp=rest // data, tensor=tensor)
            for steps in _divisors_of_two(config.training.batch_size // rest):
                for remat in REMAT_POLICIES:
                    training = dataclasses.replace(config.training, gradient_accumulation_steps=steps, remat=remat)
                    yield dataclasses.replace(config, mesh=mesh, training=training)


def _divisors_of_two(rows: int) -> Iterator[int]:
    steps = 1
    while rows and rows % steps == 0:
        yield steps
        steps *= 2


def _by_rows(config: RunConfig, platform: str) -> Callable[[RunConfig, int, int, str], SavedByLayers]:
    """saved_by_layers by proportion: what layers keep grows with rows, so one row is traced a policy and part."""

    @functools.cache
    def one_row(remat: Any, tensor: int) -> SavedByLayers:
        training = dataclasses.replace(config.training, remat=remat)
        return saved_by_layers(dataclasses.replace(config, training=training), 1, tensor, platform)

    def saved(candidate: RunConfig, rows: int, tensor: int, _: str) -> SavedByLayers:
        one = one_row(candidate.training.remat, tensor)
        return dataclasses.replace(
            one,
            activations=one.activations * rows,
            working=one.working * rows,
            traffic=one.traffic * rows,
            recomputed=one.recomputed * rows,
        )

    return saved


def _pareto(plans: list[Plan]) -> list[Plan]:
    best: list[Plan] = []
    for plan in sorted(plans, key=lambda plan: (-plan.tokens_per_second, plan.memory.total)):
        if not best or plan.memory.total < best[-1].memory.total:
            best.append(plan)
    return best
