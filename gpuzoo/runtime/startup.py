"""Choose precision, XLA and threads, and what else both backends start with."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, read_regular
from gpuzoo.runtime.environment import (
    DEFAULT_VARIABLES,
    LOAD_TUNING_FLAG,
    READ_AT_IMPORT,
    WHOLE_TUNING_FLAG,
    available_cores,
    cpu_isa,
)
from gpuzoo.runtime.options import Options

_LEAST = 2_000  # MB; with 1,500 both libraries abort on start


@contextlib.contextmanager
def quiet_start():
    """Hide the log lines of a backend's C++ start-up, unless it fails."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with tempfile.TemporaryFile() as log:
        saved = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in saved:
                os.dup2(log.fileno(), number)
            yield
        except Exception:
            log.seek(0)
            os.write(saved[2], log.read())
            raise
        finally:
            for number, copy in saved.items():
                os.dup2(copy, number)
                os.close(copy)


def set_variables() -> list[str]:
    """Set the default variables before a backend is imported and reads them.

    Returns:
        Those that an already imported TensorFlow would ignore: they are not set, so
        that they are not recorded as in use.
    """
    late = [
        name
        for name in READ_AT_IMPORT
        if "tensorflow" in sys.modules and name not in os.environ
    ]
    for name, value in DEFAULT_VARIABLES.items():
        if name not in late:
            os.environ.setdefault(name, value)
    return late


def pin_autotune(options: Options) -> str | None:
    """Set the XLA flags that load autotuning results from a file; return its sha256.

    XLA then refuses to compile operations that are not in the file.
    """
    if not options.autotune:
        return None
    check_autotune(options)
    path = expand(options.autotune).resolve()
    try:
        content = read_regular(path)
    except OSError as error:
        raise GpuzooError(
            f"autotune file {options.autotune}: {error.strerror or error}; gpuzoo "
            "train --autotune FILE creates it on a GPU"
        ) from None
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} {LOAD_TUNING_FLAG}{path} {WHOLE_TUNING_FLAG}"
    os.environ["XLA_FLAGS"] = flags.strip()
    return hashlib.sha256(content).hexdigest()


def check_autotune(options: Options) -> None:
    """Refuse to pin GPU kernels for a CPU or without XLA."""
    for name, value in (("device", "cpu"), ("xla", "off")):
        if getattr(options, name) == value:
            raise GpuzooError(
                f"autotune pins XLA's GPU kernels; leave it out with --{name} {value}"
            )


def choose_device(
    requested: str, seen: bool, library: str, install: str
) -> tuple[str, str]:
    """Return the device and the reason; `seen`: whether the library sees a GPU."""
    if requested == "gpu" and not seen:
        raise GpuzooError(
            f"device gpu was requested, but {library} sees no GPU here; check the "
            f"driver with nvidia-smi and run: pip install '{install}', or use "
            "--device cpu"
        )
    if requested != "auto":
        return requested, "requested"
    return ("gpu", "a GPU is available") if seen else ("cpu", f"{library} sees no GPU")


def choose_threads(options: Options) -> tuple[int, str]:
    if options.threads:
        return options.threads, "requested"
    return available_cores(), "one per available core"


def choose_precision(requested: str, device: str, capability) -> tuple[str, str]:
    if requested != "auto":
        return requested, "requested"
    if device == "gpu":
        if tuple(capability) >= (8, 0):
            return "mixed_bfloat16", "native bfloat16 on this GPU (capability >= 8.0)"
        if tuple(capability) >= (7, 0):
            return "mixed_float16", "native float16 but no bfloat16 on this GPU"
        return "float32", "this GPU has no 16-bit matrix units"
    flags = set(cpu_isa()) & {"avx512_bf16", "amx_bf16"}
    if flags:
        return "mixed_bfloat16", f"native bfloat16 on this CPU ({sorted(flags)[0]})"
    return "float32", "no native bfloat16 on this CPU"


def choose_xla(requested: str, name: str, probe: Callable[[], str] | None):
    """Return whether TensorFlow compiles with XLA, and the reason.

    Args:
        requested: auto, on or off.
        name: of the GPU, for messages.
        probe: returns why XLA does not compile for the GPU, or ""; None on a CPU.

    Raises:
        GpuzooError: XLA was requested and does not work.
    """
    if requested == "off" or (requested == "on" and probe is None):
        return requested == "on", "requested"
    if probe is None:
        why = "on a CPU oneDNN convolutions are several times faster than XLA's"
        return False, why
    failure = probe()
    if failure and requested == "on":
        raise GpuzooError(
            f"xla on was requested, but XLA does not compile for {name}: {failure}; "
            "use --xla off, --backend jax, or a newer TensorFlow"
        )
    if failure:
        return False, f"XLA does not compile for {name}: {failure}"
    why = "compiled steps are faster on a GPU"
    return True, why if requested == "auto" else "requested"


def check_limit(library: str) -> None:
    """Raise GpuzooError if the process's memory limit is below what a library needs to
    start: it would abort without a message."""
    limit = memory_limit()
    if limit is not None and limit < _LEAST:
        raise GpuzooError(
            f"out of memory: {library} needs {_LEAST:,} MB of address space, and this "
            f"process is limited to {limit:,} MB; raise the limit with ulimit -v"
        )


def memory_limit() -> int | None:
    """Return the limit of the process's address space in MB, or None."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit // 1_000_000
