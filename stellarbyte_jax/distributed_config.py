"""How the processes of a run find each other, as a frozen dataclass that refuses contradictions when it is built."""

from dataclasses import dataclass

from stellarbyte.errors import UserError
from stellarbyte_jax.bounds import MOST_DEVICES, check_whole

_A_WEEK = 7 * 24 * 3600  # seconds


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes that train one run together: each has settings of its own here, and none changes the losses.

    coordinator_address (host:port of process 0), num_processes and process_id (from 0): what is not given is what JAX
        detects, on Cloud TPU, SLURM, Kubernetes and Open MPI. Where that is nothing, one process trains alone.
    local_device_ids: the GPUs of this process; by default one each under SLURM and Open MPI, elsewhere all.
    detect: false to go by these settings alone.
    start_timeout: seconds until all must have come.
    lost_after: seconds of silence after which a process counts as dead.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    local_device_ids: tuple[int, ...] | None = None
    detect: bool = True
    start_timeout: int = 300
    lost_after: int = 30

    def __post_init__(self) -> None:
        if self.coordinator_address is not None:
            host, colon, port = self.coordinator_address.rpartition(":")
            if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
                raise UserError(
                    f"distributed.coordinator_address {self.coordinator_address} is not host:port: write it as "
                    "10.0.0.1:8476"
                )
        for name, least, most in (
            ("num_processes", 1, MOST_DEVICES),
            ("process_id", 0, MOST_DEVICES),
            ("start_timeout", 1, _A_WEEK),
            ("lost_after", 1, _A_WEEK),
        ):
            if getattr(self, name) is not None:
                check_whole(f"distributed.{name}", getattr(self, name), least, most)
        for device in self.local_device_ids or ():
            check_whole("distributed.local_device_ids", device, 0, MOST_DEVICES)
        if self.process_id is not None and self.num_processes is not None and self.process_id >= self.num_processes:
            raise UserError(
                f"distributed.process_id {self.process_id} is none of the {self.num_processes} processes: "
                f"they count from 0 to {self.num_processes - 1}"
            )
