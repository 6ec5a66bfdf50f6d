"""`gpuzoo doctor`: checks of the installation and the machine, with remedies."""

import ctypes
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from packaging.requirements import Requirement

from gpuzoo.engine.backends import topology
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand
from gpuzoo.home import redact
from gpuzoo.runtime import environment, xla_probe
from gpuzoo.runtime.environment import is_installed, version_of
from gpuzoo.runtime.options import BACKENDS

_PYTHON = ((3, 11), (3, 14))
_SECONDS = 600  # timeout of one probe
# Libraries that TensorFlow loads on a GPU -> the wheel that contains it.
_LIBRARIES = {
    "libcudart.so.12": "nvidia-cuda-runtime-cu12",
    "libcublas.so.12": "nvidia-cublas-cu12",
    "libcufft.so.11": "nvidia-cufft-cu12",
    "libcusolver.so.11": "nvidia-cusolver-cu12",
    "libcusparse.so.12": "nvidia-cusparse-cu12",
    "libcudnn.so.9": "nvidia-cudnn-cu12",
    "libnccl.so.2": "nvidia-nccl-cu12",
}
_PROBES = {
    "tensorflow": """
import json, tensorflow as tf
built = tf.sysconfig.get_build_info()
gpus = tf.config.list_physical_devices("GPU")
details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
print(json.dumps({
    "gpus": [d.get("device_name", "GPU") for d in details],
    "capability": [d.get("compute_capability") for d in details],
    "cuda": built.get("cuda_version"),
    "compiled_for": list(built.get("cuda_compute_capabilities", [])),
}))
""",
    "jax": """
import json, jax
gpus = [d for d in jax.devices() if d.platform in ("gpu", "cuda")]
print(json.dumps({"gpus": [d.device_kind for d in gpus]}))
""",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    ok: bool
    what: str
    """What was found."""
    remedy: str = ""
    """What to do about a problem; empty if there is none."""
    checked: bool = True


def examine(*, quick: bool = False) -> Iterator[Finding]:
    """Run all checks; `quick` skips the repeatability test (two trainings)."""
    yield from _python()
    yield from _packages()
    yield from _settings()
    yield from _cores()
    yield from _places()
    installed = [backend for backend in BACKENDS if is_installed(backend)]
    yield from _backends(installed)
    for backend in installed:
        yield from _devices(backend)
        if not quick:
            yield from _repeats(backend)


def examine_devices(devices: int) -> Iterator[Finding]:
    """Check so many devices of JAX, and measure an exchange between them.

    Raises:
        GpuzooError: the number is none, or JAX is missing.
    """
    if not 1 <= devices <= 1024:
        raise GpuzooError(f"devices must be in 1..1024: {devices}")
    if not is_installed("jax"):
        raise GpuzooError("devices needs JAX: pip install jax")
    found = topology.measure(devices)
    if error := found.get("error"):
        yield Finding("devices", False, error, "see docs/howto/devices.md")
        return
    count, kind = found["devices"], found["kind"]
    what = f"{count} x {kind}"
    if found["virtual"] and count == 1:
        what = f"the CPU ({kind})"
    elif found["virtual"]:
        what = f"{count} virtual on one CPU ({kind}), of whose {found['threads']} "
        what += "threads they take turns: not faster than one"
    where = f"process {found['rank']} of {found['processes']}, "
    where += f"{found['hosts']} host{'s' * (found['hosts'] > 1)}"
    yield Finding("devices", True, f"{what}; {where}")
    if not found["exchanges"]:
        yield Finding("exchange", True, "one device: there is none", checked=False)
        return
    links = ["memory"] if found["virtual"] else found["links"] or ["not known"]
    if found["processes"] > 1:
        links.append("between processes the network (of this host: its loopback)")
    yield Finding("links", True, ", ".join(links))
    for one in found["exchanges"]:
        yield _exchange(one)


def _exchange(found: dict) -> Finding:
    """Return what an exchange took."""
    size, seconds = found["bytes"], found["seconds"]
    what = f"all-reduce of {size:,} bytes from each: {1000 * seconds:.2f} ms"
    if size > 1_000_000:
        what += f", {size / seconds / 1e9:.2f} GB/s"
    remedy = "" if found["right"] else "the sums are wrong: do not train on these"
    return Finding("exchange", found["right"], what, remedy)


def _backends(installed: list[str]) -> Iterator[Finding]:
    """Check which backends are installed; one is enough."""
    missing = [backend for backend in BACKENDS if backend not in installed]
    what = " and ".join(installed) or "none"
    if installed and missing:
        what += f" ({missing[0]} is not installed: pip install {missing[0]} adds it)"
    remedy = "" if installed else "pip install tensorflow"
    yield Finding("backends", bool(installed), what, remedy)


def _python() -> Iterator[Finding]:
    here, (least, most) = sys.version_info[:2], _PYTHON
    what = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    remedy = "" if least <= here <= most else "use Python 3.11 to 3.14"
    yield Finding("python", not remedy, what, remedy)


def _packages() -> Iterator[Finding]:
    """Check the requirements of gpuzoo; with JAX, TensorFlow is optional."""
    wrong = []
    for line in importlib.metadata.requires("gpuzoo") or ():
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue  # for an extra, or for another Python
        version, name = version_of(wanted.name), wanted.name
        # With JAX, TensorFlow's packages are optional.
        optional = name.startswith("tensorflow") and is_installed("jax")
        fits = wanted.specifier.contains(version or "0", prereleases=True)
        if not (fits if version else optional):
            wrong.append(str(wanted))
    main = ("tensorflow", "jax", "keras", "numpy")
    found = [f"{name} {version_of(name)}" for name in main if version_of(name)]
    remedy = "pip install " + " ".join(f"'{w}'" for w in wrong) if wrong else ""
    yield Finding("packages", not wrong, ", ".join(found), remedy)


def _settings() -> Iterator[Finding]:
    moving = environment.moving_variables()
    found = ", ".join(f"{name}={value}" for name, value in moving.items())
    yield Finding(
        "environment", not moving, found or "no variable that changes results",
        f"unset {' '.join(moving)}, or keep it for every run" if moving else "",
    )  # fmt: skip
    backend = os.environ.get("KERAS_BACKEND")
    if backend and backend not in BACKENDS:
        yield Finding(
            "backend", False, f"KERAS_BACKEND={backend}",
            f"gpuzoo runs on {' or '.join(BACKENDS)}: unset KERAS_BACKEND",
        )  # fmt: skip


def _cores() -> Iterator[Finding]:
    cores, allowed = environment.available_cores(), _quota()
    isa = set(environment.cpu_isa()) & {"avx512_bf16", "amx_bf16"}
    what = f"{environment.cpu_model()}, {cores} cores, "
    what += "native bfloat16" if isa else "no native bfloat16"
    what += f", class {environment.cpu_class()}"
    remedy = ""
    if allowed and allowed < cores:
        what += f", of which this container may use {allowed:g}"
        remedy = f"--threads {max(1, int(allowed))}"
    yield Finding("cpu", not remedy, what, remedy)


def _quota() -> float | None:
    """Return the CPU quota of a container in cores; None: unlimited."""
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _places() -> Iterator[Finding]:
    from gpuzoo.files import root

    for name, path in (("cache", root()), ("runs", pathlib.Path("runs").resolve())):
        there = path
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free / 1e9
        what = f"{redact(str(path))}, {free:.1f} GB free"
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            variable = "set GPUZOO_CACHE to" if name == "cache" else "go to"
            remedy = f"{variable} a writable folder"
            yield Finding(name, False, f"{what}, {error.strerror}", remedy)
            continue
        remedy = "free some disk space" if free < 1 else ""
        yield Finding(name, not remedy, what, remedy)


def probe(backend: str) -> dict | str:
    """Return what a backend says of its GPUs in a process of its own, or why it does
    not start."""
    done = _run([sys.executable, "-P", "-c", _PROBES[backend]])
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["killed"])[-1][:200]
    return json.loads(done.stdout.splitlines()[-1])


def _devices(backend: str) -> Iterator[Finding]:
    found = probe(backend)
    if isinstance(found, str):
        remedy = f"pip install --force-reinstall {backend}"
        yield Finding(backend, False, f"does not start: {found}", remedy)
        return
    driver = environment.driver()
    if not found["gpus"] and not driver:
        yield Finding(backend, True, "starts; no GPU, no NVIDIA driver")
    elif not found["gpus"]:
        yield Finding(
            backend, False, f"sees no GPU, but there is a driver: {driver}",
            _what_is_missing(backend),
        )  # fmt: skip
    else:
        what = f"sees {', '.join(found['gpus'])}"
        too_new = [
            f"{major}.{minor}"
            for major, minor in found.get("capability") or ()
            if found["compiled_for"]
            and not kernels_for((major, minor), found["compiled_for"])
        ]
        if too_new:
            what += f" with compute capability {too_new[0]}, for which it is not built"
        remedy = "use --backend jax" if too_new else ""
        yield Finding(backend, not too_new, what, remedy)
        if backend == "tensorflow":
            yield _compiles()


def _compiles(device: str = "/GPU:0") -> Finding:
    """Check that XLA compiles for the device."""
    failure = xla_probe.failure(device)
    what = f"does not compile for this GPU: {failure}" if failure else "compiles"
    remedy = "use --backend jax, or a newer TensorFlow; until then XLA stays off"
    return Finding("tensorflow XLA", not failure, what, remedy if failure else "")


def kernels_for(capability: tuple[int, int], compiled_for: list[str]) -> str:
    """Return how a build of TensorFlow runs on a GPU.

    Args:
        capability: the GPU's compute capability.
        compiled_for: sm_NN: kernels for that capability and later ones of the same
            major number; compute_NN: these, and code that the driver translates for
            every later one.

    Returns:
        "native", "translated", or "" if it does not run there.
    """
    builds = [one.partition("_") for one in compiled_for]
    known = [(kind, divmod(int(number), 10)) for kind, _, number in builds]
    if any(at[0] == capability[0] and at <= capability for _, at in known):
        return "native"
    later = any(kind == "compute" and at <= capability for kind, at in known)
    return "translated" if later else ""


def _what_is_missing(backend: str) -> str:
    if backend == "jax":
        return "pip install 'jax[cuda13]'"
    missing = []
    for library, wheel in _LIBRARIES.items():
        folder = importlib.util.find_spec("nvidia")
        at = [] if folder is None else folder.submodule_search_locations
        beside = [p for place in at for p in pathlib.Path(place).rglob(library)]
        try:
            ctypes.CDLL(str(beside[0]) if beside else library)
        except OSError:
            missing.append(f"{library} ({wheel})")
    failed = f" (cannot be loaded: {', '.join(missing)})" if missing else ""
    return f"pip install 'tensorflow[and-cuda]'{failed}"


def _repeats(backend: str) -> Iterator[Finding]:
    """Compare the weights of a short training in two new processes."""
    digests = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("one", "two"):
            done = _run(
                [
                    sys.executable, "-P", "-m", "gpuzoo", "train", "mnist",
                    "--data", "digits", "--epochs", "2", "--quiet",
                    "--backend", backend, "--out", str(expand(folder) / name),
                ]
            )  # fmt: skip
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["killed"])[-1]
                yield Finding(
                    f"{backend}, trained twice", False, last[:300],
                    "gpuzoo train mnist --data digits --debug shows where",
                )  # fmt: skip
                return
            digests.append(json.loads(done.stdout.splitlines()[-1])["weights_sha256"])
    same = digests[0] == digests[1]
    what = f"weights {digests[0][:16]} and {digests[1][:16]}"
    remedy = "" if same else "gpuzoo diff RUN_A RUN_B shows where two runs diverge"
    yield Finding(f"{backend}, trained twice", same, what, remedy)


def _run(words: list[str]) -> subprocess.CompletedProcess:
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=False, env=quiet,
            timeout=_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        message = f"timed out after {_SECONDS} s"
        return subprocess.CompletedProcess(words, 124, "", message)
