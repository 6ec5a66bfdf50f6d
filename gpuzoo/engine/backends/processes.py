"""Several processes that train together: what one says and the others hear.

Through JAX's coordination service, which runs in the first process: short texts, and
waiting for each other. Gradients go another way (shards.py).
"""

import contextlib
import itertools

import jax
import numpy as np
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.startup import quiet_start

_FAILED = "gpuzoo/failed/"
# How long a process waits before it looks whether another one has failed.
_LOOK = 2_000  # ms
# Of a process: all do the same, so that equal numbers belong together.
_numbers = itertools.count(1)


class Processes:
    """The processes of a training; rank 0 writes the run folder."""

    def __init__(self):
        self.rank, self.count = jax.process_index(), jax.process_count()

    def say(self, content: bytes | None) -> bytes:
        """Return what the first process says; the others give None."""
        name = f"gpuzoo/{next(_numbers)}"
        with readable():
            client = distributed.global_state.client
            if self.rank == 0:
                client.key_value_set_bytes(name, content)
                return content
            return self._heard(client.blocking_key_value_get_bytes, name)

    def each(self, text: str) -> list[str]:
        """Return what each process says, by rank."""
        name = f"gpuzoo/{next(_numbers)}"
        with readable():
            client = distributed.global_state.client
            client.key_value_set(f"{name}/{self.rank}", text)
            return [
                self._heard(client.blocking_key_value_get, f"{name}/{rank}")
                for rank in range(self.count)
            ]

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.each("")

    def fail(self, text: str) -> None:
        """Tell the others, who may be waiting, that this process has failed."""
        client = distributed.global_state.client
        client.key_value_set(f"{_FAILED}{self.rank}", text)

    def _heard(self, read, name: str):
        """Return what `read` gets, however long that takes.

        Raises:
            GpuzooError: another process has failed.
        """
        while True:
            try:
                return read(name, _LOOK)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
            client = distributed.global_state.client
            for key, text in client.key_value_dir_get(_FAILED):
                rank = key.rpartition("/")[2]
                raise GpuzooError(f"process {rank} of this training failed: {text}")


class Gather:
    """Arrays of all processes, gathered on the first device of each."""

    def __init__(self):
        firsts = {}
        for device in jax.devices():
            firsts.setdefault(device.process_index, device)
        self.count, self.first = len(firsts), firsts[jax.process_index()]
        self._met = False
        self._each, self._gathered = gathering([firsts[n] for n in sorted(firsts)])

    def __call__(self, array):
        """Return the arrays of all processes, (processes, ...)."""
        shape = self.count, *array.shape
        here = jax.device_put(array[None], self.first)
        whole = jax.make_array_from_single_device_arrays(shape, self._each, [here])
        # The first time Gloo says on standard output whom it has met.
        quiet = contextlib.nullcontext() if self._met else quiet_start()
        with readable(), quiet:
            gathered = self._gathered(whole).addressable_data(0)
            gathered.block_until_ready()
        self._met = True
        return gathered


def gathering(devices: list) -> tuple:
    """Return how an array lies on devices, a row on each, and the program that gives
    every one of them all rows."""
    mesh = Mesh(np.array(devices), ("processes",))
    same = NamedSharding(mesh, PartitionSpec())
    program = jax.jit(lambda array: array, out_shardings=same)
    return NamedSharding(mesh, PartitionSpec("processes")), program


@contextlib.contextmanager
def readable():
    """Say of an error of JAX in the block that another process has ended."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise GpuzooError(
            f"another process of this training has ended or is out of reach ({line}); "
            "start all of them again, with gpuzoo resume if there is a checkpoint"
        ) from error
