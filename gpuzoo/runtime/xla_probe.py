"""Test in a child process whether XLA compiles for this GPU.

On a GPU newer than the TensorFlow wheel everything may work except XLA, whose first
compilation aborts the process, so that no exception can be caught
(github.com/tensorflow/tensorflow/issues/111958).
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys

from gpuzoo.files import read_inside, root, write_atomically
from gpuzoo.home import without_home
from gpuzoo.runtime.environment import (
    LOAD_TUNING_FLAG,
    WHOLE_TUNING_FLAG,
    driver,
    versions,
)

_SECONDS = 300
_CODE = """
import sys, tensorflow as tf
tf.config.set_soft_device_placement(False)
for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)
with tf.device(sys.argv[1]):
    double = tf.function(lambda x: x * 2 + 1, jit_compile=True)
    print(double(tf.ones(8)).numpy().sum())
"""


def known_failure(name: str, capability, device: str = "/GPU:0") -> str:
    """Return `failure`, cached per GPU, driver, TensorFlow and XLA_FLAGS.

    Only final results are cached: that it works, or that the process aborted; after a
    temporary error, such as a lack of memory, it is tried again.
    """
    kept = {n: v for n, v in versions().items() if n.startswith(("tensorflow", "nv"))}
    subject = {
        "gpu": name, "capability": list(capability), "driver": driver(),
        "versions": kept, "XLA_FLAGS": _flags(), "device": device,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()
    path = root() / "xla" / f"{digest[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(read_inside(path.parent, path.name))["failure"])
    reason, final = _try(device)
    if final:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"failure": reason}).encode()
            write_atomically(path, content, replace=False)
    return reason


def failure(device: str = "/GPU:0") -> str:
    """Compile one operation with XLA in a child process, and run it on the device.

    Returns:
        The reason of a failure in one line; an empty string if it worked.
    """
    return _try(device)[0]


def _try(device: str) -> tuple[str, bool]:
    """Return what went wrong, and whether it will happen again."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _CODE, device], check=False, text=True,
            capture_output=True, timeout=_SECONDS, errors="replace",
            env={**os.environ, "XLA_FLAGS": _flags(), "TF_CPP_MIN_LOG_LEVEL": "2"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"a test compilation timed out after {_SECONDS} s", False
    except OSError as error:
        return f"a test compilation could not be started: {error.strerror}", False
    if done.returncode == 0 and done.stdout.split()[-1:] == ["24.0"]:
        return "", True
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "rror" in line or "ailed" in line] or lines
    why = f": {without_home(wrong[-1])[:200]}" if wrong else ""
    if done.returncode < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-done.returncode).name
            return f"a test compilation died of {name}{why}", name != "SIGKILL"
    return f"a test compilation failed{why}", False


def _flags() -> str:
    """Return XLA_FLAGS without the autotune file, which lacks this operation."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    return " ".join(
        flag
        for flag in flags
        if not flag.startswith((LOAD_TUNING_FLAG, WHOLE_TUNING_FLAG))
    )
