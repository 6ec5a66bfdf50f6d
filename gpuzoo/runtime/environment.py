"""What this machine is and has, as far as the bits of a run may depend on it."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import sys
import threading

# Instruction sets that the CPU libraries choose their code by.
_ISA = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve",
)  # fmt: skip
# Environment variables that change the arithmetic of a backend, or of NumPy.
_MOVES_BITS = (
    "NVIDIA_TF32_OVERRIDE", "TF_CUDNN_USE_AUTOTUNE", "TF_CUDNN_WORKSPACE_LIMIT_IN_MB",
    "TF_DISABLE_MKL", "TF_ENABLE_ONEDNN_OPTS", "TF_SET_ONEDNN_FPMATH_MODE",
    "TF_XLA_FLAGS", "XLA_FLAGS", "CUBLAS_WORKSPACE_CONFIG", "TF_ENABLE_ONEDNN_SPMM",
    "TF_ENABLE_ZENDNN_OPTS", "TF_ENABLE_WINOGRAD_NONFUSED", "TF_USE_CUBLASLT",
    "TF_CUBLAS_WORKSPACE_LIMIT_IN_MB", "TF_CUDNN_RNN_USE_AUTOTUNE",
    "TF_CUDNN_USE_RUNTIME_FUSION", "TF_USE_CUDNN_BATCHNORM_SPATIAL_PERSISTENT",
    "TF_FP16_CONV_USE_FP32_COMPUTE", "TF_FP16_MATMUL_USE_FP32_COMPUTE",
    "TF_FP16_RNN_USE_FP32_COMPUTE", "NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE",
)  # fmt: skip
# Of these libraries every variable, so that a new one is not missed ...
_WATCHED = ("JAX_", "DNNL_", "ONEDNN_")
# ... but those that log, keep what is compiled, or name the device, which is read back.
_HARMLESS = {
    "JAX_COMPILATION_CACHE_CHECK_CONTENTS", "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE", "JAX_ENABLE_COMPILATION_CACHE",
    "JAX_RAISE_PERSISTENT_CACHE_ERRORS",
    "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "JAX_EXPLAIN_CACHE_MISSES",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "JAX_PLATFORMS", "JAX_PLATFORM_NAME",
    "JAX_LOG_COMPILES", "JAX_LOGGING_LEVEL", "JAX_DEBUG_LOG_MODULES",
    "JAX_DUMP_IR_TO", "JAX_DUMP_IR_MODES", "JAX_TRACEBACK_FILTERING",
    "DNNL_VERBOSE", "DNNL_VERBOSE_TIMESTAMP", "DNNL_PRIMITIVE_CACHE_CAPACITY",
    "ONEDNN_VERBOSE", "ONEDNN_VERBOSE_TIMESTAMP", "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
}  # fmt: skip
# What XLA is told on a GPU when bits are promised, and when its choices are pinned.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
LOAD_TUNING_FLAG = "--xla_gpu_load_autotune_results_from="
WHOLE_TUNING_FLAG = "--xla_gpu_require_complete_aot_autotune_results=true"
# Variables that gpuzoo sets unless they are set. TensorFlow turns oneDNN on or off by
# the CPU; CUDA's products on several streams repeat with two workspaces of 4 MiB.
DEFAULT_VARIABLES = {
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# Of these what TensorFlow reads once, when it is imported.
READ_AT_IMPORT = ("TF_ENABLE_ONEDNN_OPTS",)
# Installed packages that the bits may depend on, besides NVIDIA's.
_PACKAGES = {
    "gpuzoo", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "keras-hub",
    "numpy", "jax", "jaxlib", "ml-dtypes", "tensorflow-datasets", "safetensors",
    "scikit-learn", "pillow",
}  # fmt: skip


# Values that tell nothing of the user, and names whose values always may.
_PLAIN = re.compile(
    r"-?\d+(\.\d+)?(e-?\d+)?|-{0,2}[A-Za-z_]\w*(,[A-Za-z_]\w*)*|(:\d+)+"
)
_SHIELD = "sha256:"  # before the digest of a value
_PRIVATE = re.compile(
    r"ADDR|HOST|URL|URI|PATH|DIR|FILE|TOKEN|KEY|SECRET|USER|BUCKET|DUMP|PASS|CRED",
    re.IGNORECASE,
)


def is_installed(package: str) -> bool:
    """Whether it can be imported. A folder of that name that holds no package, which
    Python would import too, does not count."""
    if package in sys.modules:
        return sys.modules[package] is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def busy_cores():
    """Give every available core other work inside: whatever depends on the order in
    which threads finish shows itself sooner."""
    ended, block = threading.Event(), bytes(1 << 18)

    def work() -> None:
        while not ended.is_set():
            hashlib.sha256(block)  # holds no lock of the interpreter

    threads = [threading.Thread(target=work) for _ in range(available_cores())]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        ended.set()
        for one in threads:
            one.join()


def _cpu_info() -> list[tuple[str, str]]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, _, value in pairs]


def cpu_isa() -> list[str]:
    """The instruction sets that matter, in a fixed order."""
    for key, value in _cpu_info():
        if key in ("flags", "Features"):
            return [name for name in _ISA if name in value.split()]
    return []


def cpu_model() -> str:
    """The processor's name, with family and model, since clouds shorten the name."""
    found = dict(reversed(_cpu_info()))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{found['model name']} ({', '.join(numbers)})"


def memory_bytes() -> int | None:
    """Main memory that could be had now; None where the system does not tell."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    told = dict(line.split(":") for line in lines)
    return 1024 * int(told["MemAvailable"].split()[0])


def driver() -> str | None:
    """Version line of the NVIDIA kernel driver, None where there is none."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return text.partition("\n")[0].strip()


def moving_variables() -> dict[str, str]:
    """The environment variables that move bits and are not as gpuzoo sets them; of
    what may be a path, an address or a secret the digest, so that a change is seen."""
    return {name: shielded(value, name) for name, value in _moving().items()}


def shielded(value: str, name: str = "") -> str:
    """The value of a variable, or of each flag in it, where it is a number or a word;
    else the digest of it."""
    return " ".join(
        f"{flag}={_digest_of(told)}"
        if equals and not _is_plain(told, flag)
        else flag + equals + told
        if equals or _is_plain(flag, name)
        else _digest_of(flag)
        for flag, equals, told in (part.partition("=") for part in value.split())
    )


def hidden_values() -> dict[str, str]:
    """What `shielded` leaves out of the variables, and what stands for it."""
    parts = {
        part.partition("=")[2] or part
        for value in {**_moving(), "": os.environ.get("XLA_FLAGS", "")}.values()
        for part in value.split()
    }
    hidden = {part: _digest_of(part) for part in parts if not _is_plain(part)}
    return dict(sorted(hidden.items(), key=lambda pair: -len(pair[0])))


def without_values(text: str) -> str:
    """A message without what `shielded` leaves out of the variables."""
    for part, told in hidden_values().items():
        text = text.replace(part, told) if len(part) > 2 else text
    return text


def unshielded(variables: dict[str, str]) -> dict[str, str]:
    """Recorded variables as they can be set here: what stands in the record as a digest
    is left out, unless this process has the very value."""
    known = {told: part for part, told in hidden_values().items()}
    found = {}
    for name, value in variables.items():
        parts = []
        for part in value.split():
            flag, equals, told = part.rpartition("=")
            if told.startswith(_SHIELD):
                if told not in known:
                    continue
                told = known[told]
            parts.append(flag + equals + told)
        if parts:
            found[name] = " ".join(parts)
    return found


def _digest_of(text: str) -> str:
    return f"{_SHIELD}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_plain(text: str, name: str = "") -> bool:
    """A number, a flag, words with commas between, :4096:8; no host and no path."""
    if _PRIVATE.search(name):
        return text.isdecimal() and len(text) < 3 or text.lower() in ("true", "false")
    return _PLAIN.fullmatch(text) is not None


def _moving() -> dict[str, str]:
    more = {name for name in os.environ if name.startswith(_WATCHED)} - _HARMLESS
    found = {name: os.environ.get(name, "") for name in (*_MOVES_BITS, *sorted(more))}
    ours = (DETERMINISTIC_FLAG, LOAD_TUNING_FLAG, WHOLE_TUNING_FLAG)
    flags = found["XLA_FLAGS"].split()
    found["XLA_FLAGS"] = " ".join(flag for flag in flags if not flag.startswith(ours))
    return {
        name: value
        for name, value in found.items()
        if value and value != DEFAULT_VARIABLES.get(name)
    }


def variables_in_force() -> dict[str, str]:
    """What gpuzoo has set in the environment of this process, read back."""
    names = (*DEFAULT_VARIABLES, "PYTHONHASHSEED", "NPROC")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if flags := os.environ.get("XLA_FLAGS", ""):
        # The tuning is known by its digest; the path would differ from place to place.
        kept = [f for f in flags.split() if not f.startswith(LOAD_TUNING_FLAG)]
        found["XLA_FLAGS"] = " ".join(kept)
    return {name: shielded(value, name) for name, value in found.items()}


def versions() -> dict[str, str]:
    """Versions of everything installed that the bits may depend on.

    Of two in the path the first, which is what Python imports. Not what is loaded by
    now: it is asked before anything is.
    """
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name in _PACKAGES or name.startswith(("nvidia-", "jax-cuda")):
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def environment() -> dict:
    """All of it, as it is recorded with a run."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_isa": cpu_isa(),
        "driver": driver(),
        "versions": versions(),
        "variables": moving_variables(),
    }
