"""The settings of several processes that train one model."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Addresses of the processes of one run; by default there is one. Raises ValueError where only a part is given."""

    coordinator_address: str | None = None
    """host:port of process 0, the same on every process."""
    num_processes: int | None = None
    """Processes in all."""
    process_id: int | None = None
    """Number of this process, from 0; process 0 writes the run's files."""
    auto: bool = False
    """Ask the cluster (TPU pod, Slurm, ...) for the three above."""
    timeout_s: int = 120
    """Seconds to wait for the others at the start, and after which a process that is silent counts as lost."""

    def __post_init__(self) -> None:
        given = (self.coordinator_address, self.num_processes, self.process_id)
        if self.timeout_s < 1:
            raise ValueError(f"distributed.timeout_s: found {self.timeout_s}, expected at least 1")
        if self.auto:
            if any(value is not None for value in given):
                raise ValueError("distributed: found auto together with an address, expected one of the two")
            return
        if given == (None, None, None):
            return
        if self.coordinator_address is None or self.num_processes is None or self.process_id is None:
            raise ValueError(
                "distributed: found some of coordinator_address, num_processes and process_id, expected all three"
            )
        if not self.coordinator_address.rpartition(":")[2].isdigit() or ":" not in self.coordinator_address:
            raise ValueError(
                f"distributed.coordinator_address: found {self.coordinator_address!r}, expected host:port of process 0"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise ValueError(
                f"distributed.process_id: found {self.process_id}, expected 0 to num_processes - 1 "
                f"({self.num_processes - 1})"
            )

    @property
    def alone(self) -> bool:
        """True if this process is the only one."""
        return not self.auto and self.coordinator_address is None
