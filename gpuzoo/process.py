"""This process, where it is a command of gpuzoo's: its start, what it leaves out."""

import contextlib
import os
import sys

ours = False
"""Whether the process is such a command, not a script or a notebook of the user's."""

_TRAINING = ("train", "resume", "verify")


def start(words: list[str] | None) -> None:
    """The process is ours from here; if it will train (`words` None or a command that
    does), it begins afresh with a fixed order of Python's sets.

    Not inside of a debugger or the like, where the process is not this very command.
    """
    global ours
    ours = True
    if "PYTHONHASHSEED" in os.environ:
        return
    if words is not None and (not words or words[0] not in _TRAINING):
        return
    count = len(sys.argv) - 1
    head = sys.orig_argv[1 : len(sys.orig_argv) - count]
    if head in ([sys.argv[0]], ["-m", "gpuzoo"]):
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@contextlib.contextmanager
def without(*names: str):
    """Where the process is ours, imports inside do not find these packages.

    Keras imports scikit-learn for wrappers and TensorFlow imports JAX for a converter
    that no command uses; each takes a second.
    """
    hidden = [name for name in names if ours and name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
