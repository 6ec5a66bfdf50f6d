"""`gpuzoo compile`: a recipe's steps, compiled for cards that this machine lacks.

Every precision and level is compiled in a process of its own, one card after another. A
compiler that meets a card or an operation that it does not know may end its process:
this is the card's error, and another process goes on with the next card.
"""

import dataclasses
import importlib.util
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.gpus import cards, predict
from gpuzoo.gpus.cards import Card
from gpuzoo.runs.record import private
from gpuzoo.runtime.environment import is_installed, version_of
from gpuzoo.runtime.options import Options
from gpuzoo.runtime.startup import choose_precision

_SECONDS = 1800
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")


def compile_for(
    recipe: Recipe,
    names: list[str],
    precisions: tuple[str, ...] = ("auto",),
    levels: tuple[str, ...] = ("repeatable",),
    note=lambda text: None,
    xla_flags: str = "",
    kernels: str | None = None,
    devices: tuple[int, ...] = (1,),
) -> dict:
    """Compile a recipe's training and evaluation step; return the record.

    Args:
        names: cards, by name or path of a file.
        precisions: dtype policies; auto: what a training on the card would choose.
        levels: fast or repeatable.
        note: called with lines of progress.
        xla_flags: further flags of XLA, to compare what they do.
        kernels: a folder where compiled kernels are kept, of which programs of other
            levels and calls have many; of this compiler alone. Default: a temporary
            one.
        devices: how many cards train together; a row for each number.

    Raises:
        GpuzooError: no such card, the recipe cannot be trained anywhere, or JAX's
            compiler for CUDA is not installed.
    """
    if kernels is None:
        with tempfile.TemporaryDirectory() as folder:
            return compile_for(
                recipe, names, precisions, levels, note, xla_flags, folder, devices
            )
    wanted = {name: cards.load(name) for name in names}
    versions = check_installed()
    rows, data = {}, None
    for level in levels:
        for precision in precisions:
            begun = time.perf_counter()
            for row, found in _rows(
                recipe, wanted, devices, precision, level, versions, xla_flags, kernels
            ):
                rows[row["card"], level, row["precision"], row["devices"]] = row
                data = data or found
                seconds = time.perf_counter() - begun
                state = "does not compile" if row["error"] else "compiled"
                state += f", {seconds:.0f} s"
                note(f"{_where(row)}: {state}")
                begun = time.perf_counter()
    return {
        "what": f"recipe {recipe.name}, compiled for GPUs that are not here",
        "kind": "predicted, not measured",
        "date": time.strftime("%Y-%m-%d"),
        "recipe": recipe.as_record(),
        "data": data,
        "versions": versions,
        "assumptions": predict.ASSUMPTIONS,
        "rows": sorted(rows.values(), key=lambda row: names.index(row["card"])),
    }


def check_installed() -> dict[str, str]:
    """Return the versions of the compiler and of cuDNN.

    Raises:
        GpuzooError: they are not installed, or do not fit the installed JAX.
    """
    install = "run: pip install 'gpuzoo[gpu-compile]' (4.5 GB)"
    found = {
        name: version
        for name in ("jax", "jaxlib", *_PLUGINS, *_cudnn_wheels())
        if (version := version_of(name))
    }
    plugin = next((name for name in _PLUGINS if name in found), None)
    if plugin is None or not is_installed("jax"):
        raise GpuzooError(f"JAX's compiler for CUDA is not installed; {install}")
    if found[plugin] != found["jaxlib"]:
        raise GpuzooError(
            f"{plugin} {found[plugin]} does not fit jaxlib {found['jaxlib']}; "
            f"run: pip install '{plugin}[with-cuda]=={found['jaxlib']}'"
        )
    if not any(name in found for name in _cudnn_wheels()):
        raise GpuzooError(
            f"{plugin} is installed without NVIDIA's libraries; {install}"
        )
    return found


def _cudnn_wheels() -> tuple[str, ...]:
    return "nvidia-cudnn-cu13", "nvidia-cudnn-cu12"


def _rows(
    recipe: Recipe, wanted: dict[str, Card], devices, precision, level, versions,
    xla_flags, kernels: str,
) -> Iterator[tuple[dict, dict | None]]:  # fmt: skip
    """Yield a row per card with what is predicted, and the record of the data."""
    chosen = {
        name: choose_precision(precision, "gpu", card.capability)[0]
        for name, card in wanted.items()
    }
    for precision in dict.fromkeys(chosen.values()):
        options = Options(backend="jax", device="cpu", precision=precision, level=level)
        left = [
            (name, count) for name in wanted if chosen[name] == precision
            for count in devices
        ]  # fmt: skip
        while left:
            request = {
                "recipe": recipe.as_record(), "options": dataclasses.asdict(options),
                "cards": {n: dataclasses.asdict(wanted[n]) for n, _ in left},
                "jobs": left, "kernels": kernels,
                "cudnn": next(versions[n] for n in _cudnn_wheels() if n in versions),
            }  # fmt: skip
            answers = workers.answers(
                "gpuzoo.gpus.worker", request, _variables(xla_flags), _SECONDS
            )
            for (name, count), answer in zip([*left], answers, strict=False):
                if "exit_code" in answer:
                    raise GpuzooError(answer["error"])
                data = answer.get("data")
                row = _row(name, wanted[name], count, precision, level, answer)
                left.remove((name, count))
                yield row, data and private(data)


def _row(
    name: str, card: Card, devices: int, precision: str, level: str, answer: dict
) -> dict:
    row = {
        "card": name, "card_name": card.name, "devices": devices,
        "precision": precision, "level": level,
        "emulated": card.flops[precision.removeprefix("mixed_")] is None,
        "card_memory_bytes": card.memory_bytes, "usable_bytes": card.usable_bytes,
        "error": answer.get("error"),
    }  # fmt: skip
    if row["error"] is None:
        row["memory_bytes"] = predict.memory_of(answer["programs"])
        row["fits"] = row["memory_bytes"] <= card.usable_bytes
        row["programs"] = answer["programs"]
    return row


def _variables(xla_flags: str) -> dict[str, str]:
    """Return the environment of a worker: NVIDIA's libraries can be found, no variable
    of the user's changes the program."""
    spec = importlib.util.find_spec("nvidia")
    roots = list(spec.submodule_search_locations or ()) if spec else []
    folders = [str(path) for root in roots for path in pathlib.Path(root).glob("*/lib")]
    given = os.environ.get("LD_LIBRARY_PATH", "")
    dropped = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_PLATFORM_NAME")
    kept = {k: v for k, v in os.environ.items() if k not in dropped}
    return {
        **kept, "KERAS_BACKEND": "jax", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONHASHSEED": "0", "XLA_FLAGS": xla_flags,
        "LD_LIBRARY_PATH": ":".join([*folders, *([given] if given else [])]),
    }  # fmt: skip


def failures(record: dict) -> list[str]:
    """Return a line for every row that does not compile, does not fit or, at level
    repeatable, may not repeat; and for cards on which the program of a shard depends on
    how many train together, though the recipe is elastic."""
    rows = record["rows"]
    lines = [line for row in rows for line in _faults(row)]
    return lines + (_differing(rows) if record["recipe"].get("elastic") else [])


def remarks(record: dict) -> list[str]:
    """Return a line for each operation that may not repeat at level fast."""
    rows = [row for row in record["rows"] if row["level"] == "fast"]
    return [line for row in rows if not row["error"] for line in _may_not_repeat(row)]


def _differing(rows: list[dict]) -> list[str]:
    found: dict[str, set] = {}
    for row in rows:
        if row["error"] is None:
            mode = f"{row['card']}, {row['precision']}, {row['level']}"
            sha = row["programs"]["train"]["shard_sha256"]
            found.setdefault(mode, set()).add(sha)
    return [
        f"{mode}: the program of a shard depends on the number of devices: the bits of "
        "a training may, too"
        for mode, digests in found.items() if len(digests) > 1
    ]  # fmt: skip


def _where(row: dict) -> str:
    where = f"{row['card']}, {row['precision']}, {row['level']}"
    return where + (f", {row['devices']} devices" if row["devices"] > 1 else "")


def _faults(row: dict) -> list[str]:
    where = _where(row)
    if row["error"]:
        return [f"{where}: does not compile: {row['error']}"]
    lines = [] if row["level"] == "fast" else _may_not_repeat(row)
    if not row["fits"]:
        used, usable = row["memory_bytes"] / 1e9, row["usable_bytes"] / 1e9
        share = math.ceil(100 * row["memory_bytes"] / row["card_memory_bytes"] + 1)
        more = f", or set XLA_PYTHON_CLIENT_MEM_FRACTION={share / 100:.2f}"
        lines.append(
            f"{where}: does not fit: {used:.3f} GB of the {usable:.3f} GB that JAX "
            f"uses by default; use a smaller --batch-size{more * (share <= 95)}"
        )
    return lines


def _may_not_repeat(row: dict) -> list[str]:
    where = _where(row)
    return [
        f"{where}, {step}: {one['operation']} of {one['layer']} may not "
        f"repeat{_times(one['count'])}: {one['why']}; {one['remedy']}"
        for step, program in row["programs"].items()
        for one in program["may_not_repeat"]
    ]


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""
