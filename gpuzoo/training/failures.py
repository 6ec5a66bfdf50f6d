"""Errors of libraries and of user code, reported in one line."""

import contextlib
import errno
import pathlib
import re
import sys
import traceback
from typing import NoReturn

from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import Diverged, GpuzooError
from gpuzoo.runs.folder import RunFolder, write_weights
from gpuzoo.runs.record import recipe_of
from gpuzoo.runtime.configure import in_force
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
_SIXTEEN_BITS = re.compile(
    r"float(16|32|64)(?!\[)|bf16|half|dtype|(match|same) type|precision|\ATypeError"
    r"|not supported|unsupported",
    re.I,
)


# What JAX and TensorFlow say of a value that is known only when the step runs.
_TRACED = re.compile(
    r"Tracer\w*Error|Concretization|NonConcrete|traced array|must be static"
    r"|InGraphError|SymbolicTensor|symbolic `?tf\.Tensor|symbolic Tensor"
)


@contextlib.contextmanager
def readable(recipe: Recipe):
    """Raise errors that a recipe's model raises in the block in one line.

    Raises GpuzooError with the layer, the library's error and a remedy.
    """
    from gpuzoo.runtime.keras_state import whole_tracebacks

    try:
        with whole_tracebacks():
            yield
    except (GpuzooError, OSError):
        raise
    except Exception as error:
        line = out_of_memory(error)
        line = line or in_model(error, recipe.model_name, file_of(recipe.model))
        if line:
            raise GpuzooError(line) from error
        raise


def out_of_memory(error: BaseException) -> str | None:
    """Return the message for an out-of-memory error; None for any other error."""
    if isinstance(error, GpuzooError):
        return None
    text = str(error)
    known = isinstance(error, MemoryError)
    known = known or type(error).__name__ == "ResourceExhaustedError"
    known = known or getattr(error, "errno", None) == errno.ENOMEM
    known = known or any(mark.lower() in text.lower() for mark in _MEMORY)
    if not known or any(mark in text for mark in _NO_MEMORY):
        return None
    reason = re.sub(r"^(\w+: )?out of memory:? *", "", first_line(text), flags=re.I)
    reason = reason.removeprefix("RESOURCE_EXHAUSTED: ").rstrip(".")
    remedy = "use a smaller --batch-size or a smaller model"
    if limit := memory_limit():
        remedy += f", or raise the limit of this process, {limit:,} MB (ulimit -v)"
    return f"out of memory: {reason or type(error).__name__}; {remedy}"


def in_model(error: BaseException, name: str, file: pathlib.Path | None) -> str | None:
    """Return the message for an error raised by a model or a library that computes it;
    None for an error of gpuzoo itself.

    Args:
        name: of the model.
        file: the user file that defines it, if any.
    """
    reason = _reason(error)
    place, layer = _in_file(file, error), _layer_of(error)
    where = f" in layer {layer.name!r} ({type(layer).__name__})" if layer else ""
    where += f" at {place}" if place else ""
    if not where:
        where = _operation_of(error)
    if not where and not _of_library(error):
        return None
    cause = error.__cause__ or error.__context__
    if cause and first_line(str(cause)) not in reason:
        reason += f" ({_reason(cause)})"
    hint = ""
    runtime = in_force()
    if "use_cudnn='auto'" in reason:  # the remedy is in the message
        reason = reason.rstrip(".")
    elif runtime and "16" in runtime.precision and _SIXTEEN_BITS.search(reason):
        hint = "; try --precision float32"
        hint += " or give this layer dtype='float32'" if layer else ""
    elif _TRACED.search(reason):
        hint = "; its value is needed while the step is compiled: "
        if runtime and runtime.backend == "jax":
            hint += "train with --backend tensorflow, or "
        hint += "apply it to the data beforehand, or write it with keras.ops"
    return f"model {name!r} fails{where}: {reason}{hint} (--debug shows the traceback)"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(str(error))}".removesuffix(": ")


def first_line(text: str) -> str:
    """Return the first line of an error message, without the libraries' wrapping."""
    plain = re.sub(r"\x1b\[\d*m", "", text)
    plain = re.sub(r"\{\{[^{}]*\}\} ?", "", plain)
    lines = [line.strip() for line in plain.splitlines()]
    lines = [line for line in lines if line and not line.startswith(_NOISE)]
    if not lines:
        return ""
    # TensorFlow's notation of an operation: '{{node a/b}} = Mul[T=DT_FLOAT](c, d)'.
    line = re.sub(r" for '[\w/ ]*= [^']*'", "", lines[0])
    if line.endswith(":") and len(lines) > 1:
        line = f"{line} {lines[1]}"
    return line if len(line) <= 300 else f"{line[:297]}..."


def _layer_of(error: BaseException):
    """Return the innermost Keras layer or operation in whose call it was raised."""
    keras = sys.modules.get("keras")
    if keras is None:
        return None
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        one = frame.f_locals.get("self")
        if isinstance(one, keras.Operation) and not isinstance(one, keras.Model):
            found = one
    return found


def _operation_of(error: BaseException) -> str:
    """Return the operation of TensorFlow that failed, or whose gradient did."""
    if node := re.search(r"Detected at node (\S+) defined", str(error)):
        return f" in its operation {node[1]}"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        known = frame.f_locals
        if frame.f_code.co_name == "_gradient_function" and "op_name" in known:
            scope = known.get("forward_pass_name_scope") or "the model"
            return f" in {scope.rstrip('/')}, in the gradient of {known['op_name']}"
    return ""


def _of_library(error: BaseException) -> bool:
    """Return whether the last frame of an error is in a library in _LIBRARIES."""
    frames = traceback.extract_tb(error.__traceback__)
    parts = pathlib.Path(frames[-1].filename).parts if frames else ()
    return "site-packages" in parts and any(name in parts for name in _LIBRARIES)


def _in_file(file: pathlib.Path | None, error: BaseException) -> str:
    """Return the last line of a file in the traceback of an error; empty if none."""
    if file is None:
        return ""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == file.resolve()
    ]
    return f"{file.name}, line {lines[-1]}" if lines else ""


# Errors that free disk space, or another disk, solves.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def record_failure(folder: RunFolder, error: BaseException) -> None:
    """Record what went wrong, and write the last good weights if there are any.

    Only a diverged run has ended: all others can be resumed, once there is disk space,
    memory, or whatever was missing.
    """
    text = str(error) or type(error).__name__
    with contextlib.suppress(OSError, GpuzooError):
        if isinstance(error, OSError):
            return
        if isinstance(error, Diverged):
            digest = write_weights(folder, error.weights)
            files = {**folder.record.get("files", {}), "weights.safetensors": digest}
            folder.update(state="diverged", error=text, files=files)
        else:
            folder.update(state="failed", error=text)


def raise_readably(
    folder: RunFolder, error: BaseException, *, begun: bool = True
) -> NoReturn:
    """Raise errors of disk, memory and user models as one line; re-raise all others.

    A run that has not begun leaves nothing to resume, and its folder need not be what
    failed.
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
            raise GpuzooError(f"{reason}; free disk space, or set TMPDIR") from error
        if begun and folder.is_gone():
            raise GpuzooError(
                f"output folder {folder.path} was removed during the run; its results "
                "are lost"
            ) from error
        where, remedy = folder.locate(), "free some disk space"
        if error.errno not in (None, *NO_ROOM):
            where, remedy = error.filename or where, "fix that"
        go_on = f" and run: gpuzoo resume {folder.path}" if begun else ""
        raise GpuzooError(
            f"output folder {where}: {reason}; {remedy}{go_on}, or name another with "
            "--out"
        ) from error
    if isinstance(error, Exception) and not isinstance(error, GpuzooError):
        recipe = recipe_of(folder.record)
        if line := in_model(error, recipe.model_name, file_of(recipe.model)):
            raise GpuzooError(line) from error
    raise error
