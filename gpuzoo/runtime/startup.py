"""Starting a backend as it was asked for, and reading back what came of it."""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable

from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.runtime.environment import (
    DEFAULT_VARIABLES,
    LOAD_TUNING_FLAG,
    READ_AT_IMPORT,
    WHOLE_TUNING_FLAG,
    available_cores,
    cpu_isa,
)
from gpuzoo.runtime.options import Options

_LEAST = 2_000  # MB; with 1,500 both libraries abort while they start


@contextlib.contextmanager
def quiet_start():
    """Keep the start-up lines of a backend's C++ off the terminal.

    They are shown after all if what is started fails.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as log:
        saved = os.dup(2)
        try:
            os.dup2(log.fileno(), 2)
            yield
        except Exception:
            log.seek(0)
            os.write(saved, log.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def set_variables() -> list[str]:
    """Before a backend is imported, which is when it reads them.

    Returns those that TensorFlow, imported already, would read no more: they are not
    set, so that nothing says that they are in force.
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
    """Tell XLA, before it starts, to take its choices from the file; its sha256.

    XLA then refuses to compile what the file has no choice for.
    """
    if not options.autotune:
        return None
    check_autotune(options)
    path = expand(options.autotune).resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        raise GpuzooError(
            f"autotune file {options.autotune}: {error.strerror}; gpuzoo train "
            "--autotune FILE makes it on a GPU"
        ) from None
    flags = os.environ.get("XLA_FLAGS", "")
    flags = f"{flags} {LOAD_TUNING_FLAG}{path} {WHOLE_TUNING_FLAG}"
    os.environ["XLA_FLAGS"] = flags.strip()
    return hashlib.sha256(content).hexdigest()


def check_autotune(options: Options) -> None:
    """Refuse to pin what XLA compiles for a GPU where it compiles nothing for one."""
    for name, value in (("device", "cpu"), ("xla", "off")):
        if getattr(options, name) == value:
            raise GpuzooError(
                f"autotune pins what XLA compiles for a GPU; leave it out with "
                f"--{name} {value}"
            )


def choose_threads(options: Options) -> tuple[int, str]:
    if options.threads:
        return options.threads, "asked for"
    return available_cores(), "one per available core"


def choose_precision(asked: str, device: str, capability) -> tuple[str, str]:
    if asked != "auto":
        return asked, "asked for"
    if device == "gpu":
        if tuple(capability) >= (8, 0):
            return "mixed_bfloat16", "this GPU computes bfloat16 (capability >= 8.0)"
        if tuple(capability) >= (7, 0):
            return "mixed_float16", "this GPU computes float16 but not bfloat16"
        return "float32", "this GPU has no 16-bit matrix units"
    flags = set(cpu_isa()) & {"avx512_bf16", "amx_bf16"}
    if flags:
        return "mixed_bfloat16", f"this CPU computes bfloat16 ({sorted(flags)[0]})"
    return "float32", "this CPU does not compute 16-bit numbers itself"


def choose_xla(asked: str, name: str, probe: Callable[[], str] | None):
    """Whether TensorFlow compiles with XLA, and why.

    Args:
        asked: auto, on or off.
        name: of the GPU, for messages.
        probe: why XLA does not compile for the GPU, or ""; None on a CPU.

    Raises:
        GpuzooError: XLA was asked for by name and does not work.
    """
    if asked == "off" or (asked == "on" and probe is None):
        return asked == "on", "asked for"
    if probe is None:
        why = "on a CPU oneDNN convolutions are several times faster than XLA's"
        return False, why
    failure = probe()
    if failure and asked == "on":
        raise GpuzooError(
            f"xla on was asked for, but XLA does not compile for {name}: {failure}; "
            "use --xla off, --backend jax, or a newer TensorFlow"
        )
    if failure:
        return False, f"XLA does not compile for {name}: {failure}"
    why = "compiled steps are faster on a GPU"
    return True, why if asked == "auto" else "asked for"


def check_limit(library: str) -> None:
    """Raises GpuzooError where the process may not have the memory that a library
    takes up by itself: it would be ended by the library, without a word."""
    limit = memory_limit()
    if limit is not None and limit < _LEAST:
        raise GpuzooError(
            f"out of memory: {library} takes up {_LEAST:,} MB of address space, and "
            f"this process is limited to {limit:,} MB; raise that with ulimit -v"
        )


def memory_limit() -> int | None:
    """Megabytes of address space that the process may have, if they are limited."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit // 1_000_000
