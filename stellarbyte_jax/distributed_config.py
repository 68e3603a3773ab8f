"""How the processes of a run find each other, as a frozen dataclass that refuses contradictions when it is built."""

from dataclasses import dataclass

from stellarbyte.errors import UserError
from stellarbyte_jax.bounds import MOST_DEVICES, check_whole

_A_WEEK = 7 * 24 * 3600  # seconds


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes that train one run together: each has settings of its own here, and none changes the losses."""

    coordinator_address: str | None = None
    """Address of process 0 as host:port; the port must be open to the other processes. By default JAX detects it on
    Cloud TPU, SLURM, Kubernetes and Open MPI.
    """

    num_processes: int | None = None
    """Number of processes that train the run. By default it is what JAX detects; if that is nothing, one process trains
    alone.
    """

    process_id: int | None = None
    """Number of this process, from 0. By default it is what JAX detects."""

    local_device_ids: tuple[int, ...] | None = None
    """Numbers of the GPUs that this process uses. The default is one GPU for each process under SLURM and Open MPI, and
    elsewhere all.
    """

    detect: bool = True
    """Whether JAX may detect what is not given; false goes by these settings alone."""

    start_timeout: int = 300
    """Time that all processes have to come together at the start, in seconds."""

    lost_after: int = 30
    """Silence after which a process counts as dead, in seconds."""

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
