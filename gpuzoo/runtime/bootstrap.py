"""Start of a gpuzoo command: hash seed, and imports that are skipped."""

import contextlib
import gc
import json
import os
import sys

ours = False
"""Whether the process is a gpuzoo command, not a user's script or notebook."""

_TRAINING = ("train", "resume", "verify", "compress")


def start(words: list[str] | None) -> None:
    """Mark the process as a gpuzoo command; if it trains (`words` None or a training
    command), re-execute it with a fixed PYTHONHASHSEED, that of the run that the words
    name, if any.

    Not inside a debugger or the like, where the process is not this very command.
    """
    global ours
    ours = True
    if os.environ.get("PYTHONHASHSEED", "random") not in ("", "random"):
        return
    if words is not None and (not words or words[0] not in _TRAINING):
        return
    count = len(sys.argv) - 1
    head = sys.orig_argv[1 : len(sys.orig_argv) - count]
    if head in ([sys.argv[0]], ["-m", "gpuzoo"], ["-P", "-m", "gpuzoo"]):
        os.environ["PYTHONHASHSEED"] = _order_of(words or [])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _order_of(words: list[str]) -> str:
    """Return the PYTHONHASHSEED of the run to repeat; 0 by default."""
    if words[:1] in ([], ["train"]):
        return "0"
    from gpuzoo.files import read_inside  # late: `train` starts without it

    for word in words[1:]:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError
        ):
            # read_inside does not block on a pipe or a device of that name.
            record = json.loads(read_inside(os.path.expanduser(word), "run.json"))
            order = str(record["runtime"]["variables"]["PYTHONHASHSEED"])
            if order.isdecimal() and int(order) < 2**32:
                return order
    return "0"


@contextlib.contextmanager
def importing(*left_out: str):
    """Speed up the import of a backend: garbage collection is off, as it finds nothing
    and takes a fifth of the time.

    In a gpuzoo command, imports inside do not find the packages in `left_out`: Keras
    imports scikit-learn for wrappers, matplotlib and IPython for drawing, and
    TensorFlow imports JAX for a converter, none of which a command uses there.
    """
    hidden = [name for name in left_out if ours and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if ours:
            gc.freeze()  # modules live until the end: never scan them again
        if collects:
            gc.enable()
