"""Errors of libraries and of a user's own code, told in one line."""

import contextlib
import errno
import pathlib
import re
import sys
import traceback
from typing import NoReturn

from gpuzoo.catalogue.registry import short_name
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.runs.folder import RunFolder, write_weights
from gpuzoo.runtime.startup import memory_limit

_MEMORY = (
    "RESOURCE_EXHAUSTED", "std::bad_alloc", "OOM when allocating", "out of memory",
    "cannot allocate memory", "failed to allocate", "unable to allocate",
    "failed to map segment", "can't start new thread", "failed to create thread",
)  # fmt: skip
_NO_MEMORY = ("No space left", "Too many open files", "quota")
_LIBRARIES = ("keras", "tensorflow", "jax", "jaxlib", "ml_dtypes")
_NOISE = (
    "Exception encountered when calling", "Arguments received", "Graph execution error",
    "Detected at", 'File "', "<stack traces", "Stack trace", "Call arguments",
)  # fmt: skip
_SIXTEEN_BITS = re.compile(r"float16(?!\[)|bf16|half|dtype|match type|same type", re.I)


@contextlib.contextmanager
def whole_tracebacks():
    """Keras leaves its own frames in the traceback of an error, by which the layer that
    failed is found."""
    import keras

    filtered = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()
    try:
        yield
    finally:
        if filtered:
            keras.config.enable_traceback_filtering()


def out_of_memory(error: BaseException) -> str | None:
    """The line for an error that is a lack of memory; None for any other."""
    if isinstance(error, GpuzooError):
        return None
    text = str(error)
    known = isinstance(error, MemoryError)
    known = known or type(error).__name__ == "ResourceExhaustedError"
    known = known or getattr(error, "errno", None) == errno.ENOMEM
    known = known or any(mark.lower() in text.lower() for mark in _MEMORY)
    if not known or any(mark in text for mark in _NO_MEMORY):
        return None
    told = re.sub(r"^(\w+: )?out of memory:? *", "", first_line(text), flags=re.I)
    told = told.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    remedy = "use a smaller --batch-size or a smaller model"
    if limit := memory_limit():
        remedy += f", or raise the limit of this process, {limit:,} MB (ulimit -v)"
    return f"out of memory: {told or type(error).__name__}; {remedy}"


def in_model(error: BaseException, name: str, file: pathlib.Path | None) -> str | None:
    """The line for an error that a model, or a library that computes it, has raised;
    None for an error of gpuzoo's own.

    Args:
        name: of the model.
        file: that it comes from, if it is a user's.
    """
    told = f"{type(error).__name__}: {first_line(str(error))}".removesuffix(": ")
    layer = _layer_of(error)
    if place := _in_file(file, error):
        where = f" at {place}"
    elif layer is not None:
        where = f" in layer {layer.name!r} ({type(layer).__name__})"
    elif node := re.search(r"Detected at node (\S+) defined", str(error)):
        where = f" in its operation {node[1]}"
    elif _of_library(error):
        where = ""
    else:
        return None
    hint = ""
    if _in_sixteen_bits() and _SIXTEEN_BITS.search(told):
        hint = "; try --precision float32"
    return f"model {name!r} fails{where}: {told}{hint} (--debug shows the traceback)"


def first_line(text: str) -> str:
    """What an error's text says first, without what libraries put around it."""
    plain = re.sub(r"\x1b\[\d*m", "", text)
    plain = re.sub(r"\{\{[^{}]*\}\} ?", "", plain)
    lines = [line.strip() for line in plain.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    if not lines:
        return ""
    # How TensorFlow writes down an operation: '{{node a/b}} = Mul[T=DT_FLOAT](c, d)'.
    line = re.sub(r" for '[\w/ ]*= [^']*'", "", lines[0])
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    return line if len(line) <= 300 else f"{line[:297]}..."


def _layer_of(error: BaseException):
    """The innermost layer, or operation of Keras's, in whose call it was raised."""
    keras = sys.modules.get("keras")
    if keras is None:
        return None
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        one = frame.f_locals.get("self")
        if isinstance(one, keras.Operation) and not isinstance(one, keras.Model):
            found = one
    return found


def _of_library(error: BaseException) -> bool:
    """Whether the last frame that it came through is of what computes models."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = pathlib.Path(frames[-1].filename).parts if frames else ()
    return "site-packages" in parts and any(name in parts for name in _LIBRARIES)


def _in_file(file: pathlib.Path | None, error: BaseException) -> str:
    """The last line of a file that an error came through; empty if it did not."""
    if file is None:
        return ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == file.resolve()
    ]
    return f"{file.name}, line {lines[-1]}" if lines else ""


def _in_sixteen_bits() -> bool:
    keras = sys.modules.get("keras")
    return bool(keras) and "16" in keras.config.dtype_policy().name


# Errors that room on the disk, or another disk, mends.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def record_failure(folder: RunFolder, error: BaseException) -> None:
    """Leave a record of what went wrong, and the last good weights if there are any.

    Only what has diverged has ended: everything else can be resumed, when there is room
    on the disk, or memory, or what was missing.
    """
    text = str(error) or type(error).__name__
    with contextlib.suppress(OSError, GpuzooError):
        if isinstance(error, OSError):
            return
        if isinstance(error, Diverged):
            write_weights(folder, error.weights)
            folder.update(state="diverged", error=text)
        else:
            folder.update(state="failed", error=text)


def raise_readably(
    folder: RunFolder, error: BaseException, *, begun: bool = True
) -> NoReturn:
    """A disk, a memory or a model of their own that fails is the user's to mend; the
    rest goes up.

    A run that has not begun has left nothing that could be resumed, and what failed
    need not be its folder.
    """
    if line := out_of_memory(error):
        raise GpuzooError(line) from error
    if isinstance(error, OSError):
        place, reason = str(error.filename or folder.path), error.strerror or error
        if not place.startswith(str(folder.path)) and not begun:
            raise GpuzooError(
                f"{place}: {reason}; check the path and its permissions"
            ) from error
        if "temporary directory" in str(reason):
            raise GpuzooError(f"{reason}; make room in one, or set TMPDIR") from error
        if begun and folder.is_gone():
            raise GpuzooError(
                f"output folder {folder.path} is gone, removed while the run was at "
                "work; what was trained is lost"
            ) from error
        where, remedy = folder.locate(), "free some room"
        if error.errno not in (None, *NO_ROOM):
            where, remedy = error.filename or where, "mend that"
        go_on = f" and run: gpuzoo resume {folder.path}" if begun else ""
        raise GpuzooError(
            f"output folder {where}: {reason}; {remedy}{go_on}, or name another with "
            "--out"
        ) from error
    model = folder.record["recipe"]["model"]
    if isinstance(error, Exception) and not isinstance(error, GpuzooError):
        if line := in_model(error, short_name(model), file_of(model)):
            raise GpuzooError(line) from error
    raise error
