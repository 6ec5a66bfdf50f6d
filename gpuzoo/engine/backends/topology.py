"""`gpuzoo doctor --devices N`: which devices JAX sees, how they are connected, and a
measured exchange between them, as a training does it (shards.py)."""

import os
import platform
import re
import statistics
import subprocess
import time

from gpuzoo import workers
from gpuzoo.runtime import jobs
from gpuzoo.runtime.options import Options

_SECONDS = 600
_TURNS = 7
_NUMBERS = 4_000_000  # of float32 that each device sends: 16 MB
# A link in the matrix of `nvidia-smi topo -m` -> in words.
_LINKS = {
    "PIX": "one PCIe bridge", "PXB": "several PCIe bridges", "PHB": "the CPU's PCIe",
    "NODE": "several PCIe of a CPU", "SYS": "the link between CPUs",
}  # fmt: skip


def measure(devices: int) -> dict:
    """Return the topology and the time of exchanges, or an `error`; measured in a
    process of its own, so that nothing of JAX is set up in this one.

    In a job of several processes (its variables say so) all of them must call it.

    Args:
        devices: of this process; on a CPU they are virtual.
    """
    joined = jobs.named(os.environ) is not None
    request = {"devices": devices, "distributed": joined}
    module = "gpuzoo.engine.backends.topology"
    return workers.ask(module, request, dict(os.environ), _SECONDS)


def links_in(matrix: str, count: int) -> list[str]:
    """Return in words how GPUs 0..count-1 are connected, of each kind once.

    Args:
        matrix: what `nvidia-smi topo -m` prints.
    """
    found = []
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)
    for row in range(count):
        line = re.search(rf"^GPU{row}\s+(.*)$", plain, re.MULTILINE)
        cells = line[1].split()[:count] if line else []
        for cell in cells[row + 1 :]:
            kind = re.fullmatch(r"NV(\d+)", cell)
            found.append(f"{kind[1]} NVLinks" if kind else _LINKS.get(cell, cell))
    return list(dict.fromkeys(found))


# --- in a process of its own ----------------------------------------------------------


def _work(request: dict):
    """Yield the topology and the measurements."""
    from gpuzoo.runtime.configure import configure

    runtime = configure(
        Options(
            backend="jax", devices=request["devices"],
            distributed=request["distributed"],
        ), quiet=True,
    )  # fmt: skip
    from gpuzoo.engine import backends

    backend, hosts = backends.get(runtime), [platform.node()]
    shards = backend.sharded(runtime.devices)
    if runtime.processes > 1:
        hosts = shards.processes.each(hosts[0])
    yield {
        "kind": runtime.device_name, "virtual": runtime.device == "cpu",
        "devices": runtime.devices, "processes": runtime.processes,
        "rank": shards.processes.rank, "hosts": len(set(hosts)),
        "threads": runtime.threads,
        "links": _links(runtime.device, len(shards.devices)),
        "exchanges": [
            _exchange(shards, size) for size in (1, _NUMBERS) if runtime.devices > 1
        ],
    }  # fmt: skip


def _links(device: str, count: int) -> list[str]:
    if device == "cpu" or count < 2:
        return []
    try:
        told = subprocess.run(
            ["nvidia-smi", "topo", "-m"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    return links_in(told.stdout, count)


def _exchange(shards, size: int) -> dict:
    """Time the exchange of so many numbers from each device; check that all get the
    means."""
    import jax
    import numpy as np

    first = shards.first_of(0)
    sent = [
        [[jax.device_put(np.full(size, first + place, np.float32), device)]]
        for place, device in enumerate(shards.devices)
    ]
    means = shards.means([arrays[0] for arrays in sent[0]])
    found = jax.block_until_ready(means(sent))  # compiled
    seconds = []
    for _ in range(_TURNS):
        begun = time.perf_counter()
        found = jax.block_until_ready(means(sent))
        seconds.append(time.perf_counter() - begun)
    wanted = (shards.count - 1) / 2
    right = all((np.asarray(one) == wanted).all() for (one,) in found)
    return {
        "bytes": 4 * size, "seconds": statistics.median(seconds), "right": right
    }  # fmt: skip


if __name__ == "__main__":
    workers.serve(_work)
