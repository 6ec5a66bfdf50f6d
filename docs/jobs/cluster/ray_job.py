"""Train in processes that Ray starts, one for each GPU of the cluster:

    python ray_job.py [RECIPE [OPTION...]]      PROCESSES=4 GPUS=1 for each

In a folder that all machines share; train.sh lies in it. Ray has no variables of its
own for the processes of a job, so each gets those that torchrun would set.
"""

import os
import socket
import subprocess
import sys

import ray

COUNT, GPUS = int(os.environ.get("PROCESSES", "4")), int(os.environ.get("GPUS", "1"))


@ray.remote(num_gpus=GPUS)
class Process:
    def address(self) -> tuple[str, str]:
        """Return the address of this machine, and a port that is free there."""
        with socket.create_server(("", 0)) as free:
            return ray.util.get_node_ip_address(), str(free.getsockname()[1])

    def train(self, folder: str, words: list[str], job: dict[str, str]) -> int:
        # Ray shows each process its own GPUs alone: no LOCAL_RANK.
        env = {**os.environ, **job}
        return subprocess.call(["bash", "train.sh", *words], cwd=folder, env=env)


ray.init()
processes = [Process.remote() for _ in range(COUNT)]
address, port = ray.get(processes[0].address.remote())
job = {"MASTER_ADDR": address, "MASTER_PORT": port, "WORLD_SIZE": str(COUNT)}
codes = ray.get([
    process.train.remote(os.getcwd(), sys.argv[1:], {**job, "RANK": str(rank)})
    for rank, process in enumerate(processes)
])  # fmt: skip
sys.exit(max(codes, key=abs))
