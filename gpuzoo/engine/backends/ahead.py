"""Steps on JAX, compiled for a GPU that this machine does not have, and never run.

JAX's CUDA plugin compiles for a card that is described to it. Nothing is timed while it
compiles, as on a GPU in deterministic mode: XLA takes the first choice of each kernel.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import keras
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as attention
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from gpuzoo.engine.backends.jax import JaxBackend, compile_program, flops_of
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.keras_state import replaced
from gpuzoo.runtime.options import Runtime


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that JAX has compiled for the card."""

    text: str
    """The optimized program, as XLA prints it."""
    memory: dict[str, int]
    """Bytes of its arguments, outputs, both at once (`alias`) and temporaries."""
    flops: float
    """Floating-point operations of one step, as traced."""


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
        self.device = jax.devices("cpu")[0]
        self._variables = []
        self.compiled: list[Compiled] = []
        described = topologies.get_topology_desc(
            platform="cuda", topology_name="card", target_config=target,
            topology="1x1x1",
        )  # fmt: skip
        self._place = SingleDeviceSharding(described.devices[0])

    def put(self, array: np.ndarray):
        """Return the array: a constant of the program, as it is on a GPU."""
        return array

    def sharded(self, count: int):
        """Refuse steps of a batch in shards, which are several programs."""
        raise GpuzooError(
            "gpuzoo compile looks at one program for a whole batch: leave elastic out"
        )

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
            given = jax.tree.map(self._shape, (values, example))
            count = jax.ShapeDtypeStruct(
                (), np.int32, sharding=self._place, weak_type=True
            )
            with as_on_a_gpu(self._capability):
                made = compile_program(program, *given, count, options=self._options)
                flops = flops_of(step, values, example)
            stats = made.memory_analysis()
            memory = {
                kind: getattr(stats, f"{kind}_size_in_bytes")
                for kind in ("argument", "output", "alias", "temp", "generated_code")
            }
            self.compiled.append(Compiled(made.as_text(), memory, flops))

        return call

    def _shape(self, array) -> jax.ShapeDtypeStruct:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        return jax.ShapeDtypeStruct(array.shape, dtype, sharding=self._place)


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
