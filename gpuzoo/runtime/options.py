"""What may be asked of the runtime, and what is in force."""

import dataclasses
from typing import Literal

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]


BACKENDS = ("tensorflow", "jax")
WITHOUT_TENSORFLOW = "tensorflow is not installed"
"""Why jax is the backend where none was named."""


LATE = "call gpuzoo.configure() first, before any tensor or model exists"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a person may ask of the machine; `auto` leaves the choice to gpuzoo."""

    backend: Literal["auto", "tensorflow", "jax"] = "auto"
    """The Keras backend; auto: KERAS_BACKEND, or tensorflow, or jax where tensorflow is
    not installed."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where to compute; gpu is an error where there is none."""
    precision: Precision = "auto"
    """Numbers in the layers; auto: the 16-bit kind that this device computes itself."""
    xla: Literal["auto", "on", "off"] = "auto"
    """Compile the step with XLA; auto: on a GPU, not on a CPU."""
    level: Literal["fast", "repeatable", "strict"] = "repeatable"
    """fast promises nothing; repeatable gives the same bits on the same machine; strict
    also refuses whatever may move bits from outside, and tries the first step twice."""
    threads: int = 0
    """CPU threads, which the bits depend on; 0: one per available core."""
    tf32: Literal["auto", "on", "off"] = "auto"
    """TensorFloat-32 in float32 products of NVIDIA GPUs; auto: on."""
    autotune: str = ""
    """A file that pins XLA's choice of GPU kernels, so that repeatable steps are also
    tuned; a training makes it, by tuning once, if it is not there."""


@dataclasses.dataclass(frozen=True)
class Runtime:
    """What is in force, read back from the backend."""

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
    """Whether TensorFlow computes with oneDNN; None on JAX, which has none."""
    autotune_sha256: str | None
    """Of the file that pins XLA's choice of kernels."""
    variables: dict[str, str]
    """Environment variables that gpuzoo has set."""
    seed: int
    reasons: dict[str, str]
    """Setting -> why it is what it is."""

    def line(self) -> str:
        """One line for a person."""
        parts = [
            f"{self.device} ({self.device_name})",
            self._named_backend(),
            f"{self.precision}",
            f"XLA {'on' if self.xla else 'off'}",
            "repeatable to the bit" if self.deterministic else "not repeatable "
            f"({self.reasons['deterministic']})",
            f"{self.threads} thread{'s' * (self.threads != 1)}",
        ]  # fmt: skip
        if self.device == "gpu" and not self.xla and self.reasons["xla"] != "asked for":
            parts.append(self.reasons["xla"])
        if self.device == "cpu" and self.onednn is False:
            parts.append(f"slow without oneDNN: {self.reasons['onednn']}")
        return " · ".join(parts)

    def _named_backend(self) -> str:
        if self.reasons.get("backend") != WITHOUT_TENSORFLOW:
            return self.backend
        return f"{self.backend} ({WITHOUT_TENSORFLOW})"

    def as_record(self) -> dict:
        return dataclasses.asdict(self)
