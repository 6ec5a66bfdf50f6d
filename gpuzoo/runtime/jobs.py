"""Which process of a job this one is, by the variables of whoever has started it."""

import dataclasses
from collections.abc import Mapping

from gpuzoo.errors import GpuzooError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
# Number of processes, rank, and rank among those of a machine: as torchrun and gpuzoo
# launch say it, Open MPI, and Slurm.
RANKS = (
    ("WORLD_SIZE", "RANK", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"),
)
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a process in its job."""

    address: str
    """Of the first process, without its port."""
    port: int
    count: int
    """Of the processes."""
    rank: int
    local: int | None = None
    """Rank among the processes of this machine, if that is known."""

    @property
    def is_here(self) -> bool:
        """Whether all processes are on this machine."""
        return self.address in ("127.0.0.1", "localhost")


def named(variables: Mapping[str, str]) -> Place | None:
    """Return the place that variables name with an address; None if there is none.

    Raises:
        GpuzooError: a number is none, or the rank is not one of the processes.
    """
    if not all(variables.get(name) for name in ADDRESS):
        return None
    for count, rank, _ in RANKS:
        if count in variables and rank in variables:
            names = ("MASTER_PORT", count, rank)
            texts = [variables[name] for name in names]
            if not all(text.isdecimal() for text in texts):
                pairs = zip(names, texts, strict=True)
                said = [f"{name}={text}" for name, text in pairs]
                raise GpuzooError(
                    f"{said[0]}, {said[1]} and {said[2]} must be integers"
                )
            port, processes, own = map(int, texts)
            if own >= processes:
                raise GpuzooError(
                    f"{rank}={own} must be less than {count}={processes}: the first "
                    "process has 0"
                )
            return Place(
                variables["MASTER_ADDR"], port, processes, own, local_rank(variables)
            )
    return None


def local_rank(variables: Mapping[str, str]) -> int | None:
    """Return the rank among the processes of this machine, if variables name it."""
    for _, rank, local in RANKS:
        if rank in variables:
            text = variables.get(local, "")
            return int(text) if text.isdecimal() else None
    return None


def gpus_of(
    local: int | None, devices: int, variables: Mapping[str, str]
) -> list[int] | None:
    """Return which of the GPUs that it sees are a process's own; None: all.

    Args:
        local: its rank among the processes of this machine.
        devices: GPUs of a process.
    """
    if local is None:
        return None
    for name in _VISIBLE:
        seen = [one for one in variables.get(name, "").split(",") if one.strip()]
        if len(seen) == devices:  # the scheduler shows it no others
            return [*range(devices)]
    return [*range(local * devices, (local + 1) * devices)]
