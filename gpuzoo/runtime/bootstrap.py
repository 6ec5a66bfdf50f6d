"""This process, where it is a command of gpuzoo's: its start, what it leaves out."""

import contextlib
import gc
import json
import os
import sys

ours = False
"""Whether the process is such a command, not a script or a notebook of the user's."""

_TRAINING = ("train", "resume", "verify")


def start(words: list[str] | None) -> None:
    """The process is ours from here; if it will train (`words` None or a command that
    does), it begins afresh with a fixed order of Python's sets, that of the run which
    the words name, if they name one.

    Not inside of a debugger or the like, where the process is not this very command.
    """
    global ours
    ours = True
    if os.environ.get("PYTHONHASHSEED", "random") not in ("", "random"):
        return
    if words is not None and (not words or words[0] not in _TRAINING):
        return
    count = len(sys.argv) - 1
    head = sys.orig_argv[1 : len(sys.orig_argv) - count]
    if head in ([sys.argv[0]], ["-m", "gpuzoo"]):
        os.environ["PYTHONHASHSEED"] = _order_of(words or [])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _order_of(words: list[str]) -> str:
    """The PYTHONHASHSEED of a run that is to be done again; 0 by default."""
    if words[:1] in ([], ["train"]):
        return "0"
    from gpuzoo.files import read_inside  # after that: a training starts without it

    for word in words[1:]:
        with contextlib.suppress(
            OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError
        ):
            # A pipe or a device of that name is not waited for
            record = json.loads(read_inside(os.path.expanduser(word), "run.json"))
            order = str(record["runtime"]["variables"]["PYTHONHASHSEED"])
            if order.isdecimal() and int(order) < 2**32:
                return order
    return "0"


@contextlib.contextmanager
def importing(*left_out: str):
    """For the import of a backend: no garbage is collected, as nothing that comes is
    garbage and looking for it takes a fifth of the time.

    Where the process is ours, imports inside do not find the packages that are left
    out: Keras imports scikit-learn for wrappers, matplotlib and IPython for drawing,
    and TensorFlow imports JAX for a converter, none of which a command uses there.
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
            gc.freeze()  # what is there now stays: it is not looked through again
        if collects:
            gc.enable()
