"""Find or make the ONNX model of a run, without loading TensorFlow here."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

from gpuzoo.deploy.export import GENERATORS
from gpuzoo.deploy.serve.artefact import DESCRIPTION, content, description
from gpuzoo.errors import GpuzooError
from gpuzoo.files import expand, root
from gpuzoo.runs.record import no_run, read_run
from gpuzoo.workers import how_it_ended


def folder_of(
    path: str, note=lambda text: None, options: tuple[str, ...] = ()
) -> pathlib.Path:
    """Return the export folder of a run folder, or the path if it is one.

    A run is exported by `gpuzoo export` in a process of its own, into gpuzoo's cache,
    unless an export of the same weights is there or beside the run.

    Args:
        options: of `gpuzoo export`, such as --trust-code.

    Raises:
        GpuzooError: it is neither, or the run cannot be exported.
    """
    folder = expand(path)
    if (folder / DESCRIPTION).is_file():
        return folder
    if not (folder / "run.json").is_file():
        raise no_run(folder, "neither a run folder nor one of gpuzoo export")
    record = read_run(folder)
    if record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{path} is {record['state']}: it has no trained weights; finish it with: "
            f"gpuzoo resume {path}"
        )
    made, is_there = _place(folder.resolve(), record)
    if is_there:
        note(f"Serving the export {made}")
        return made
    note(f"Exporting {path} to ONNX, checked on the whole test set ...")
    made.parent.mkdir(parents=True, exist_ok=True)
    _export(folder, made, options)
    return made


def _place(run: pathlib.Path, record: dict) -> tuple[pathlib.Path, bool]:
    """Return the export folder of a run and whether it is there: else a free name in
    the cache, beside what is damaged there."""
    beside = run.with_name(f"{run.name}-export")
    if _holds(beside, record):
        return beside, True
    cached = root() / "exports" / record["seal"][:32]
    others = (cached.with_name(f"{cached.name}-{n}") for n in itertools.count(2))
    for folder in itertools.chain((cached,), others):
        is_there = os.path.lexists(folder)
        if not is_there or _holds(folder, record):
            break
    return folder, is_there


def _holds(folder: pathlib.Path, record: dict) -> bool:
    """Whether a folder has a complete ONNX export of a run, not quantized, which does
    what the run was trained for: that of `--generate` has only a part of the model."""
    try:
        about, _ = description(folder)
        content(folder, about)
    except GpuzooError:
        return False
    wanted = {
        "run_id": record["id"], "weights_sha256": record["weights_sha256"],
        "generates": record["recipe"]["task"] in GENERATORS,
    }  # fmt: skip
    same = {name: about.get(name) for name in wanted} == wanted
    return same and not about["formats"]["onnx"].get("quantized")


def _export(run: pathlib.Path, to: pathlib.Path, options: tuple[str, ...] = ()) -> None:
    words = ["export", os.path.abspath(run), "--to", "onnx", "--out", str(to), *options]
    done = subprocess.run(
        # -P: no module is imported from the current folder.
        [sys.executable, "-P", "-m", "gpuzoo", *words], check=False,
        capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        if done.returncode < 0 or not lines:  # the last line is only one of progress
            lines = [how_it_ended(done.returncode)]
        why = _failures(done.stdout) or lines[-1]
        raise GpuzooError(
            f"the export of {run} failed: {why.removeprefix('gpuzoo: error: ')} "
            f"(with other options: gpuzoo export {run}, then serve the folder)"
        )


def _failures(output: str) -> str:
    """Return the failed checks in the last line of `gpuzoo export`, or "" if it ended
    in another way."""
    try:
        return "; ".join(json.loads(output.splitlines()[-1])["failures"])
    except (IndexError, ValueError, KeyError, TypeError):
        return ""
