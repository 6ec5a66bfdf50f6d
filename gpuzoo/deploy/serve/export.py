"""Find or make the ONNX model of a run, without loading TensorFlow here."""

import json
import pathlib
import subprocess
import sys

from gpuzoo.deploy.serve.artefact import DESCRIPTION
from gpuzoo.errors import ExitCode, GpuzooError
from gpuzoo.files import expand, parse_json, read_inside, root
from gpuzoo.runs.record import read_run


def folder_of(path: str, note=lambda text: None) -> pathlib.Path:
    """Return the export folder of a run folder, or the path if it is one.

    A run is exported by `gpuzoo export` in a process of its own, into gpuzoo's cache,
    unless an export of the same weights is there or beside the run.

    Raises:
        GpuzooError: it is neither, or the run cannot be exported.
    """
    folder = expand(path)
    if (folder / DESCRIPTION).is_file():
        return folder
    if not (folder / "run.json").is_file():
        raise GpuzooError(
            f"{path} is neither a run folder nor a folder that `gpuzoo export` wrote"
        )
    record = read_run(folder)
    if record["state"] not in ("finished", "stopped"):
        raise GpuzooError(
            f"{path} is {record['state']}: it has no trained weights; finish it with: "
            f"gpuzoo resume {path}"
        )
    cached = root() / "exports" / record["seal"][:32]
    for made in (folder.with_name(f"{folder.name}-export"), cached):
        if _holds(made, record):
            note(f"Serving the export {made}")
            return made
    note(f"Exporting {path} to ONNX, checked on the whole test set ...")
    cached.parent.mkdir(parents=True, exist_ok=True)
    _export(folder, cached)
    return cached


def _holds(folder: pathlib.Path, record: dict) -> bool:
    """Whether a folder has an ONNX export of a run, not quantized."""
    try:
        about = parse_json(read_inside(folder, DESCRIPTION).decode())
        found = [about["run_id"], about["weights_sha256"]]
        same = found == [record["id"], record["weights_sha256"]]
        return same and not about["formats"]["onnx"].get("quantized")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _export(run: pathlib.Path, to: pathlib.Path) -> None:
    words = ["export", str(run), "--to", "onnx", "--out", str(to)]
    done = subprocess.run(
        [sys.executable, "-m", "gpuzoo", *words], check=False, capture_output=True,
        text=True, errors="replace", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        if done.returncode == ExitCode.FAILED:  # the file predicts something else
            why = "; ".join(json.loads(done.stdout.splitlines()[-1])["failures"])
        raise GpuzooError(
            f"the export of {run} failed: {why.removeprefix('gpuzoo: error: ')} "
            f"(with other options: gpuzoo export {run}, then serve the folder)"
        )
