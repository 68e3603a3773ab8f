"""Resolves training.remat auto: the fastest policy whose memory fits the chips."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stellarbyte.chips import GIB, Chip, chip_of
from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.remat import POLICIES
from stellarbyte_jax.planning.plan import Plan, Planner
from stellarbyte_jax.planning.topology import Topology

REMAT_POLICIES = ("none", *POLICIES)

# The share of the HBM that auto fills at most, because the prediction may be a few percent off.
MOST_OF_HBM = 0.95


def plan_policies(config: RunConfig, topology: Topology) -> list[Plan]:
    """The plans of the run under each policy, in the order of the policies."""
    planner = Planner(config, topology)
    return [planner.plan(with_remat(config, policy)) for policy in REMAT_POLICIES]


def choose(plans: Sequence[Plan]) -> Plan:
    """The fastest plan that leaves a twentieth of the HBM free; of equally fast plans, the one that needs least memory.

    If no plan leaves that much, the one that needs least memory; `fits` tells whether it fits at all.
    """
    fitting = [plan for plan in plans if plan.memory.total <= MOST_OF_HBM * plan.topology.chip.hbm_bytes]
    if not fitting:
        return min(plans, key=lambda plan: plan.memory.total)
    return min(fitting, key=lambda plan: (plan.roofline.step_seconds, plan.memory.total))


def with_remat(config: RunConfig, policy: Any) -> RunConfig:
    """The config with this policy."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, remat=policy))


def resolve_remat(config: RunConfig, devices: Sequence[Any]) -> RunConfig:
    """The config with a policy in the place of auto, for the devices that it will run on; on CPUs the policy is none.

    Raises:
        UserError: the chips are not in the table, or no policy fits them.
    """
    if config.training.remat != "auto":
        return config
    if devices[0].platform == "cpu":
        return with_remat(config, "none")
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise UserError(
            f"training.remat auto knows no chip named {devices[0].device_kind}: set it to {', '.join(REMAT_POLICIES)}"
        )
    chosen = choose(plan_policies(config, _topology(chip, devices, config.mesh.slices)))
    if not chosen.fits:
        missing = (chosen.memory.total - chip.hbm_bytes) / GIB
        policy = chosen.config.training.remat
        raise UserError(
            f"training.remat auto: nothing fits {chip.name}, {policy} comes nearest, {missing:.2f} GiB too much; "
            f"use more chips or gradient_accumulation_steps, or fewer rows, or set training.remat {policy} to try it"
        )
    return chosen.config


def _topology(chip: Chip, devices: Sequence[Any], slices: int) -> Topology:
    """The topology of the devices: TPUs know their coordinates, and the GPUs of one process are one node."""
    if chip.platform == "gpu":
        nodes = len({device.process_index for device in devices})
        return Topology(chip, (len(devices) // nodes, nodes))
    sides = tuple(len({device.coords[side] for device in devices}) for side in range(3))
    return Topology(chip, sides[: chip.torus_axes], slices)
