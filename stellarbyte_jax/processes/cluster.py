"""Which of a run's processes this one is; the config says so, or the cluster that it runs on."""

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
    """This process's place, from the config and, for settings left out, from what JAX detects; None if it is alone.

    Raises:
        UserError: only some of the settings are known, or JAX detects no cluster although `detect` is set.
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
            f"distributed.{missing[0]} is neither given nor detected: set coordinator_address, num_processes and "
            "process_id for several processes, or none of them to train alone"
        )
    assert address is not None and count is not None and index is not None
    return Place(address, count, index, devices)
