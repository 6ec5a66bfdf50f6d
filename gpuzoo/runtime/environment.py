"""Hardware, software versions and variables that the results of a run depend on."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import subprocess
import sys
import threading

from gpuzoo.runtime import processors

# Instruction sets by which CPU libraries select their kernels.
_ISA = (
    "sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_bf16", "amx_int8", "asimd", "bf16", "sve", "avx_ne_convert",
    "amx_fp16",
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
    "GLIBC_TUNABLES",
)  # fmt: skip
# Every variable with these prefixes counts, so that a new one is not missed ...
_WATCHED = ("JAX_", "DNNL_", "ONEDNN_")
# ... except those for logs, compilation caches and the device, which is read back.
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
# XLA flags for deterministic GPU kernels, and for pinned autotuning results.
DETERMINISTIC_FLAG = "--xla_gpu_deterministic_ops=true"
LOAD_TUNING_FLAG = "--xla_gpu_load_autotune_results_from="
WHOLE_TUNING_FLAG = "--xla_gpu_require_complete_aot_autotune_results=true"
# Defaults that gpuzoo sets. TensorFlow turns oneDNN on or off by the CPU; cuBLAS on
# several streams is deterministic with two workspaces of 4 MiB.
DEFAULT_VARIABLES = {
    "TF_ENABLE_ONEDNN_OPTS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
# Those of them that TensorFlow reads once, when it is imported.
READ_AT_IMPORT = ("TF_ENABLE_ONEDNN_OPTS",)
# Those that level portable sets (portable.py).
_expected: dict[str, str] = {}
_NAME = re.compile(r"^Name:[ \t]*(\S+)", re.MULTILINE)
# Installed packages that results may depend on, besides NVIDIA's.
_PACKAGES = {
    "gpuzoo", "tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "keras-hub",
    "numpy", "jax", "jaxlib", "ml-dtypes", "tensorflow-datasets", "safetensors",
    "scikit-learn", "pillow",
}  # fmt: skip


# Values that reveal nothing about the user, and names whose values always may.
_PLAIN = re.compile(
    r"-?\d+(\.\d+)?(e-?\d+)?|-{0,2}[A-Za-z_]\w*(,[A-Za-z_]\w*)*|(:\d+)+"
)
_SHIELD = "sha256:"  # before the digest of a value
_PRIVATE = re.compile(
    r"ADDR|HOST|URL|URI|PATH|DIR|FILE|TOKEN|KEY|SECRET|USER|BUCKET|DUMP|PASS|CRED",
    re.IGNORECASE,
)


def is_installed(package: str) -> bool:
    """Whether a package can be imported. A plain folder of that name, which Python
    would import as a namespace package, does not count."""
    if package in sys.modules:
        return sys.modules[package] is not None
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def version_of(package: str) -> str:
    """Return the version of an installed package, "" if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def busy_cores():
    """Keep every available core busy inside the block: results that depend on the order
    in which threads finish are found sooner."""
    ended, block = threading.Event(), bytes(1 << 18)

    def work() -> None:
        while not ended.is_set():
            hashlib.sha256(block)  # releases the GIL

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
    """Return the relevant instruction sets of the CPU, in a fixed order."""
    for key, value in _cpu_info():
        if key in ("flags", "Features"):
            return [name for name in _ISA if name in value.split()]
    return []


def cpu_model() -> str:
    """Return the CPU's name with family and model, since clouds shorten the name."""
    found = dict(reversed(_cpu_info()))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    numbers = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return f"{found['model name']} ({', '.join(numbers)})"


def cpu_class() -> str:
    """Return the class of the CPU (gpuzoo/runtime/processors.py)."""
    found = dict(reversed(_cpu_info()))
    vendor = found.get("vendor_id") or found.get("CPU implementer") or cpu_model()
    return processors.class_from(vendor, cpu_isa())


def memory_bytes() -> int | None:
    """Return the available main memory, or None where the system does not report it."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    found = dict(line.split(":") for line in lines)
    return 1024 * int(found["MemAvailable"].split()[0])


def driver() -> str | None:
    """Return the version line of the NVIDIA kernel driver, or None."""
    try:
        text = pathlib.Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    return text.partition("\n")[0].strip()


def expect(variables: dict[str, str]) -> dict[str, str]:
    """Let these variables be gpuzoo's values in this process; return those before."""
    global _expected
    before, _expected = _expected, variables
    return before


def moving_variables() -> dict[str, str]:
    """Return environment variables that change results and differ from gpuzoo's values;
    possible paths, addresses or secrets as digests, so that a change is detected."""
    return {name: shielded(value, name) for name, value in _moving().items()}


def shielded(value: str, name: str = "") -> str:
    """Return the value of a variable, or of each flag in it, if it is a number or a
    word; else its digest."""
    return " ".join(
        f"{flag}={_digest_of(setting)}"
        if equals and not _is_plain(setting, flag)
        else flag + equals + setting
        if equals or _is_plain(flag, name)
        else _digest_of(flag)
        for flag, equals, setting in (part.partition("=") for part in value.split())
    )


def hidden_values() -> dict[str, str]:
    """Return the values that `shielded` hides, and their digests."""
    parts = {
        part.partition("=")[2] or part
        for value in {**_moving(), "": os.environ.get("XLA_FLAGS", "")}.values()
        for part in value.split()
    }
    hidden = {part: _digest_of(part) for part in parts if not _is_plain(part)}
    return dict(sorted(hidden.items(), key=lambda pair: -len(pair[0])))


def without_values(text: str) -> str:
    """Replace in a message the values that `shielded` hides."""
    for part, digest in hidden_values().items():
        text = text.replace(part, digest) if len(part) > 2 else text
    return text


def unshielded(variables: dict[str, str]) -> dict[str, str]:
    """Return recorded variables as they can be set here: values recorded as digests are
    left out, unless this process has the same value."""
    known = {digest: part for part, digest in hidden_values().items()}
    found = {}
    for name, value in variables.items():
        parts = []
        for part in value.split():
            flag, equals, setting = part.rpartition("=")
            if setting.startswith(_SHIELD):
                if setting not in known:
                    continue
                setting = known[setting]
            parts.append(flag + equals + setting)
        if parts:
            found[name] = " ".join(parts)
    return found


def _digest_of(text: str) -> str:
    return f"{_SHIELD}{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_plain(text: str, name: str = "") -> bool:
    """Whether it is a number, a flag, words or :4096:8, and not a host or a path."""
    if _PRIVATE.search(name):
        return text.isdecimal() and len(text) < 3 or text.lower() in ("true", "false")
    return _PLAIN.fullmatch(text) is not None


def _moving() -> dict[str, str]:
    more = {name for name in os.environ if name.startswith(_WATCHED)} - _HARMLESS
    found = {name: os.environ.get(name, "") for name in (*_MOVES_BITS, *sorted(more))}
    ours = (DETERMINISTIC_FLAG, LOAD_TUNING_FLAG, WHOLE_TUNING_FLAG)
    defaults = {**DEFAULT_VARIABLES, **_expected}
    flags = found["XLA_FLAGS"].split()
    found["XLA_FLAGS"] = " ".join(flag for flag in flags if not flag.startswith(ours))
    if "glibc.cpu." not in found["GLIBC_TUNABLES"]:  # others are for memory and locks
        del found["GLIBC_TUNABLES"]
    return {
        name: value
        for name, value in found.items()
        if value and value != defaults.get(name)
    }


def variables_in_force() -> dict[str, str]:
    """Return the variables that gpuzoo has set in this process, read back."""
    names = (*DEFAULT_VARIABLES, *_expected, "PYTHONHASHSEED", "NPROC")
    found = {name: os.environ[name] for name in names if name in os.environ}
    if flags := os.environ.get("XLA_FLAGS", ""):
        # The tuning file is recorded by its digest; its path differs between machines.
        kept = [f for f in flags.split() if not f.startswith(LOAD_TUNING_FLAG)]
        found["XLA_FLAGS"] = " ".join(kept)
    return {name: shielded(value, name) for name, value in found.items()}


def hash_order_is_fixed() -> bool:
    """Return whether Python started with PYTHONHASHSEED, and so orders sets as another
    process with it does; a variable that the script has set has no effect."""
    seed = os.environ.get("PYTHONHASHSEED", "")
    if not sys.flags.hash_randomization:
        return True
    if not seed.isdecimal() or not sys.executable:
        return False
    done = subprocess.run(
        [sys.executable, "-S", "-c", "print(hash('gpuzoo'))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() == str(hash("gpuzoo"))


def versions() -> dict[str, str]:
    """Return the versions of all installed packages that results may depend on.

    Of duplicates in the path the first, which Python imports. Read from metadata, as
    nothing may be loaded yet.
    """
    found = {}
    for distribution in importlib.metadata.distributions():
        # All names are read from their lines: to parse all metadata takes ten times
        # as long, a tenth of a second at every start.
        places = ("METADATA", "PKG-INFO", "")  # "": an old single .egg-info file
        texts = map(distribution.read_text, places)
        named = _NAME.search(next(filter(None, texts), ""))
        name = named[1].lower().replace("_", "-") if named else ""
        if name in _PACKAGES or name.startswith(("nvidia-", "jax-cuda")):
            found.setdefault(name, distribution.version)
    return dict(sorted(found.items()))


def environment() -> dict:
    """Return the environment as recorded with a run."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "cpu": cpu_model(),
        "cpu_isa": cpu_isa(),
        "cpu_class": cpu_class(),
        "driver": driver(),
        "versions": versions(),
        "variables": moving_variables(),
    }
