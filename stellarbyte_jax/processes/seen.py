"""Tells what JAX sees here: devices, and the cluster as `distributed.detect` would find it."""

from typing import Any

from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.processes.cluster import find_place

# Kubernetes and Cloud TPU are asked over the network.
_SECONDS = 5


def devices() -> dict[str, Any]:
    """The default backend and its devices, each with its kind and its memory in bytes, None where JAX does not say."""
    import jax

    found = []
    for device in jax.devices():
        statistics = device.memory_stats() or {}
        found.append({"kind": device.device_kind, "memory_bytes": statistics.get("bytes_limit")})
    return {"backend": jax.default_backend(), "devices": found, "processes": jax.process_count()}


def cluster() -> dict[str, Any] | None:
    """This process's place in the cluster that JAX detects, and the cluster's kind; None if there is none.

    Raises:
        UserError: there is a cluster, but it does not say enough.
    """
    from jax._src.clusters import ClusterEnv

    kind = next((each.__name__ for each in ClusterEnv._cluster_types if each.is_env_present()), None)
    place = find_place(DistributedConfig(start_timeout=_SECONDS))
    if kind is None and place is None:
        return None
    found: dict[str, Any] = {"kind": kind, "processes": 1, "process_id": 0}
    if place is not None:
        found |= {"processes": place.count, "process_id": place.index, "coordinator_address": place.address}
    return found
