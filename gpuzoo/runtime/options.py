"""Options of the runtime, and the settings in use."""

import dataclasses
from typing import Literal

from gpuzoo.runtime.environment import available_cores

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]


BACKENDS = ("tensorflow", "jax")
WITHOUT_TENSORFLOW = "tensorflow is not installed"
"""The reason for choosing jax by default."""


LATE = "call gpuzoo.configure() first, before any tensor or model exists"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Runtime options; `auto` lets gpuzoo choose."""

    backend: Literal["auto", "tensorflow", "jax"] = "auto"
    """Keras backend; auto: KERAS_BACKEND, else tensorflow if installed, else jax."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Device; gpu is an error if there is none."""
    precision: Precision = "auto"
    """Keras dtype policy; auto: mixed precision if the device supports it natively."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the step with XLA; auto: on a GPU, not on a CPU."""
    level: Literal["fast", "repeatable", "strict", "portable"] = "repeatable"
    """fast: not deterministic; repeatable: bit-identical results on the same machine;
    strict: also refuses environment changes and repeats the first step; portable:
    bit-identical on every x86-64 processor with AVX2 and FMA, on Linux, in float32 on
    the CPU."""
    threads: int = 0
    """CPU threads; results depend on them; 0: one per available core (with level
    portable two)."""
    devices: int = 1
    """Number of devices (data parallelism), with backend jax; on a CPU they are virtual
    and not faster. Results depend on it, except with --elastic."""
    model_devices: int = 1
    """Number of devices over which the weights of the model are split (model
    parallelism), with backend jax, for models too large for one. Results depend on
    it."""
    distributed: bool = False
    """Train in several processes, each with --devices, with backend jax: under gpuzoo
    launch, torchrun, Slurm, Open MPI or Kubernetes, which set rank and address."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TensorFloat-32 in float32 matrix products on NVIDIA GPUs; auto: on."""
    autotune: str = ""
    """File that pins XLA's autotuned GPU kernels, for fast repeatable steps; if it does
    not exist, the training tunes once and creates it."""


# Settings on which the last bits of a prediction depend.
COMPARED = ("backend", "precision", "xla", "threads", "device", "onednn", "level")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """The settings in use, read back from the backend."""

    backend: str
    device: str
    """cpu or gpu."""
    device_name: str
    precision: str
    xla: bool
    deterministic: bool
    level: str
    threads: int
    tf32: bool
    onednn: bool | None
    """Whether TensorFlow uses oneDNN; None on JAX, which has none."""
    autotune_sha256: str | None
    """Digest of the file that pins XLA's choice of kernels."""
    devices: int
    """Devices that share each batch, of all processes."""
    model_devices: int
    """Devices over which the weights are split."""
    processes: int
    """Processes that train together."""
    variables: dict[str, str]
    """Environment variables that gpuzoo has set."""
    seed: int
    reasons: dict[str, str]
    """Setting -> the reason for its value."""

    @property
    def compute_dtype(self) -> str:
        """The dtype of most computations: bfloat16 of mixed_bfloat16."""
        return self.precision.removeprefix("mixed_")

    def line(self) -> str:
        """Return a one-line summary for the user."""
        without = self.reasons.get("backend") == WITHOUT_TENSORFLOW
        parts = [
            f"{self.device} ({self.device_name})",
            self.backend + f" ({WITHOUT_TENSORFLOW})" * without,
            f"{self.precision}",
            f"XLA {'on' if self.xla else 'off'}",
            self._repeatable(),
            self._threads(),
            *self._devices(),
        ]  # fmt: skip
        if self.device == "gpu" and not self.xla and self.reasons["xla"] != "requested":
            parts.append(self.reasons["xla"])
        if self.device == "cpu" and self.onednn is False:
            parts.append(f"slow without oneDNN: {self.reasons['onednn']}")
        return " · ".join(parts)

    def _repeatable(self) -> str:
        if not self.deterministic:
            return f"not repeatable ({self.reasons['deterministic']})"
        return self.reasons.get("level", "repeatable to the bit")

    def _devices(self) -> list[str]:
        virtual = " virtual" * (self.device == "cpu" and self.processes == 1)
        if self.model_devices > 1:
            return [f"weights split over {self.model_devices}{virtual} devices"]
        if self.devices == 1:
            return []
        of = f" of {self.processes} processes" * (self.processes > 1)
        return [f"{self.devices}{virtual} devices{of}"]

    def _threads(self) -> str:
        text = f"{self.threads} thread{'s' * (self.threads != 1)}"
        cores = available_cores()
        few = f" (slow: {cores} core{'s' * (cores != 1)} available)"
        return text + few * (self.threads > cores)

    def as_record(self) -> dict:
        return dataclasses.asdict(self)
