"""Steps on JAX, compiled for a GPU that this machine does not have, and never run.

JAX's CUDA plugin compiles for a card that is described to it. Nothing is timed while it
compiles, as on a GPU in deterministic mode: XLA takes the first choice of each kernel.
"""

import contextlib
from collections.abc import Callable

import jax
import keras
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as attention
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gpuzoo.engine.backends import processes, triton
from gpuzoo.engine.backends.ahead_shards import AheadShards
from gpuzoo.engine.backends.compiled import Compiled, Part
from gpuzoo.engine.backends.jax import JaxBackend, flops_of
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime


class AheadBackend(JaxBackend):
    """`compile_steps` returns a function that compiles and returns nothing.

    Args:
        runtime: of the card; its tensors are kept on the CPU.
        target: the card, a text that XLA parses as its GpuTargetConfigProto.
        capability: the card's compute capability.
        memory: the card's memory in bytes.
        kernels: a file where compiled kernels of the card are kept for programs that
            have the same; None: nowhere. It has no effect on a program's text.
    """

    def __init__(
        self, runtime: Runtime, target: str, capability, memory: int,
        kernels: str | None = None,
    ):  # fmt: skip
        self.runtime, self._memory, self._capability = runtime, memory, capability
        self._options = _keeping_kernels(kernels) if kernels else {}
        self.device, self.processes = jax.devices("cpu")[0], processes.Processes()
        self._target, self._variables = target, []
        self.compiled: list[Compiled] = []
        self._place = SingleDeviceSharding(self.described(1)[0])

    def described(self, count: int) -> list:
        """Return so many devices of the card."""
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="card", target_config=self._target,
            topology=f"1x1x{count}",
        )  # fmt: skip
        return list(topology.devices)

    def put(self, array: np.ndarray):
        """Return the array: a constant of the program, as it is on a GPU."""
        return array

    def sharded(self, count: int):
        """Return the backend that compiles the steps of a batch in so many shards."""
        return AheadShards(self, count)

    def memory_bytes(self) -> int | None:
        return self._memory

    def compile_steps(
        self, body: Callable, feed: dict, variables: list[keras.Variable]
    ) -> Callable:
        """Return a function that compiles the loop of `JaxBackend.compile_steps`."""
        program, step, most = self.program(body, feed, variables)
        example = {n: np.empty((most, *a.shape[1:]), a.dtype) for n, a in feed.items()}

        def call(feed: dict) -> None:
            values = [variable.value for variable in variables]
            given = jax.tree.map(self.shape, (values, example))
            count = jax.ShapeDtypeStruct(
                (), np.int32, sharding=self._place, weak_type=True
            )
            with self.traced_for_the_card():
                text, memory = self.program_for_the_card(program, *given, count)
                flops = flops_of(step, values, example)
            self.compiled.append(Compiled((Part("step", text),), memory, flops))

        return call

    def traced_for_the_card(self):
        """Return a block in which Keras and JAX trace as on the card."""
        return as_on_a_gpu(self._capability)

    def program_for_the_card(self, program, *given) -> tuple[str, dict[str, int]]:
        """Compile a jitted program; return its text and the bytes that it needs."""
        made = triton.compile_program(program, *given, options=self._options)
        stats = made.memory_analysis()
        kinds = ("argument", "output", "alias", "temp", "generated_code")
        memory = {kind: getattr(stats, f"{kind}_size_in_bytes") for kind in kinds}
        return made.as_text(), memory

    def shape(self, array, sharding=None) -> jax.ShapeDtypeStruct:
        """Return what an array or a traced value is on the card."""
        return jax.ShapeDtypeStruct(
            array.shape, jax.dtypes.canonicalize_dtype(array.dtype),
            sharding=sharding or self._place,
            weak_type=getattr(array, "weak_type", False),
        )  # fmt: skip


def _keeping_kernels(path: str) -> dict:
    return {
        "xla_gpu_kernel_cache_file": path,
        "xla_gpu_enable_llvm_module_compilation_parallelism": True,
    }


@contextlib.contextmanager
def as_on_a_gpu(capability: tuple[int, int]):
    """What Keras asks of JAX about the device is answered for the card."""

    def capable(least) -> bool:
        return capability >= tuple(map(int, str(least).split(".")))

    with (
        replaced(jax, default_backend=lambda: "gpu"),
        replaced(attention, check_compute_capability=capable),
    ):
        yield
