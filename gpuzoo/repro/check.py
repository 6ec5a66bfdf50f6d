"""`gpuzoo check`: what of a model is not repeatable, does not compile or is slow."""

import os

from gpuzoo import workers
from gpuzoo.catalogue.recipe import parse_options
from gpuzoo.catalogue.user_files import file_of
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.environment import is_installed
from gpuzoo.runtime.options import BACKENDS

_SECONDS = 900
NOT_REPEATABLE, NO_COMPILE = "not repeatable", "does not compile"
SLOW, NOTE = "slow", "note"
PREVENTS = (NOT_REPEATABLE, NO_COMPILE)
"""The kinds of findings that prevent a repeatable training."""


def check(
    model: str,
    *,
    model_options: tuple[str, ...] = (),
    shape: tuple[int, ...] = (),
    backends: tuple[str, ...] = (),
    device: str = "auto",
    precision: str = "auto",
    xla: str = "auto",
    batch_size: int = 8,
    note=lambda text: None,
) -> dict:
    """Do one training step of a model with random numbers, and look at its layers.

    The step is compiled as for a training and done twice, while every core is busy, and
    once more compiled anew; then each layer is compiled and timed alone, for at most
    30 s in all. Each backend works in a process of its own.

    Args:
        model: a name of the catalogue, or path.py:function. The function is called,
            with `model_options`; it need not be registered.
        model_options: options of the function, "name=value".
        shape: of an example, for a subclassed model that does not know it.
        backends: tensorflow, jax; default: all that are installed.
        device, precision, xla: as of `gpuzoo.configure`.
        batch_size: examples of the step.
        note: called with lines for the user.

    Returns:
        `model`; `exit_code`, 1 if a finding prevents a repeatable training;
        `findings`: `backend`, `kind` ("not repeatable", "does not compile", "slow",
        "note"), `layer`, `what`, `remedy`; `backends`: of each `runtime` (a line),
        `repeated`, `step_seconds`, and `layers` with `forward_backward_seconds`.

    Raises:
        GpuzooError: there is no such model or backend, or a number is out of range.
    """
    from gpuzoo.catalogue.registry import model_info

    if type(batch_size) is not int or not 1 <= batch_size <= 65_536:
        raise GpuzooError(f"batch_size must be in 1..65536: {batch_size!r}")
    if any(type(size) is not int or size < 1 for size in shape):
        raise GpuzooError(f"shape must be integers, 1 or more: {shape!r}")
    if not isinstance(model, str):
        raise GpuzooError(
            "check() takes the name of a model, or path.py:function, which it builds "
            f"for each backend anew; got {type(model).__name__}"
        )
    parse_options(model_options)
    file = file_of(model)
    if file is None:
        model_info(model)
    elif not file.is_file():
        raise GpuzooError(f"model file {file}: there is no such file; check its path")
    backends = backends or tuple(name for name in BACKENDS if is_installed(name))
    found: dict = {"model": model, "findings": [], "backends": {}}
    for backend in backends:
        if backend not in BACKENDS or not is_installed(backend):
            raise GpuzooError(f"backend {backend!r} is not one of those installed")
        note(f"{backend}: compiling one step of {model} ...")
        request = {
            "model": model, "model_options": list(model_options), "shape": list(shape),
            "batch_size": batch_size,
            "options": {"backend": backend, "device": device, "precision": precision,
                        "xla": xla},
        }  # fmt: skip
        env = {**os.environ, "KERAS_BACKEND": backend}
        answer = workers.ask("gpuzoo.repro.check_worker", request, env, _SECONDS)
        if "refused" in answer:
            raise GpuzooError(answer["refused"])
        if "error" in answer:
            answer = {"findings": [
                {"kind": NO_COMPILE, "layer": "", "what": answer["error"], "remedy": ""}
            ]}  # fmt: skip
        rows = answer.pop("findings")
        found["findings"] += [{"backend": backend, **row} for row in rows]
        found["backends"][backend] = answer
    bad = any(row["kind"] in PREVENTS for row in found["findings"])
    return {**found, "exit_code": int(bad)}
