"""Who this process is among those of a run, by its config or by the cluster that it runs on."""

from dataclasses import dataclass

from stellarbyte.errors import UserError
from stellarbyte_jax.distributed_config import DistributedConfig


@dataclass(frozen=True)
class Place:
    """Who this process is, and where process 0 is found (host:port)."""

    address: str
    count: int
    index: int
    local_device_ids: tuple[int, ...] | None


def find_place(config: DistributedConfig) -> Place | None:
    """By the config and, where that says nothing, by what JAX detects; None for a process that is alone.

    Raises:
        UserError: the settings are given by half, or contradict what is detected.
    """
    address, count, index = config.coordinator_address, config.num_processes, config.process_id
    devices = config.local_device_ids
    if config.detect:
        from jax._src.clusters import ClusterEnv

        try:
            address, count, index, detected = ClusterEnv.auto_detect_unset_distributed_params(
                address, count, index, devices, None, config.start_timeout
            )
            devices = None if detected is None else tuple(detected)
        except (RuntimeError, OSError, ValueError, LookupError) as error:
            raise UserError(
                f"distributed.detect: JAX finds no processes in this cluster ({(str(error).splitlines() or [''])[0]}): "
                "give coordinator_address, num_processes and process_id, or set it to false to train alone"
            ) from error
    settings = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in settings.items() if value is None]
    if count == 1 or (len(missing) == len(settings) and devices is None):
        return None
    if missing:
        raise UserError(
            f"distributed.{missing[0]} is neither given nor detected: several processes need coordinator_address, "
            "num_processes and process_id, and one that is to train alone none of them"
        )
    assert address is not None and count is not None and index is not None
    return Place(address, count, index, devices)
