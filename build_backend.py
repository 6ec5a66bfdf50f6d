"""setuptools's build backend, with two additions.

`--config-settings backend=jax` builds gpuzoo with JAX as its one backend: an extra can
only add a requirement, so TensorFlow, which plain gpuzoo brings, can be left out only
here (docs/howto/install.md).

An editable install is found first: setuptools appends its finder behind Python's own,
which makes an empty namespace package of any folder called gpuzoo in the current one,
as a checkout in its parent is.
"""

import base64
import hashlib
import pathlib
import re
import warnings
import zipfile

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks, as they are

_BACKENDS = ("tensorflow", "jax")


def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    _chosen(config_settings)
    name = build_meta.prepare_metadata_for_build_wheel(
        metadata_directory, config_settings
    )
    return _written(metadata_directory, name, config_settings)


def prepare_metadata_for_build_editable(metadata_directory, config_settings=None):
    _chosen(config_settings)
    name = build_meta.prepare_metadata_for_build_editable(
        metadata_directory, config_settings
    )
    return _written(metadata_directory, name, config_settings)


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    backend = _chosen(config_settings)
    name = build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
    _rewrite(pathlib.Path(wheel_directory, name), lambda files: None, backend)
    return name


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    backend = _chosen(config_settings)
    name = build_meta.build_editable(
        wheel_directory, config_settings, metadata_directory
    )
    _rewrite(pathlib.Path(wheel_directory, name), _found_first, backend)
    return name


def _chosen(config_settings) -> str:
    """The backend to require; raises SystemExit with one line for any other word."""
    backend = (config_settings or {}).get("backend", "tensorflow")
    if backend not in _BACKENDS:
        raise SystemExit(
            f"--config-settings backend={backend}: expected {' or '.join(_BACKENDS)}"
        )
    return backend


def _requiring(metadata: str, backend: str) -> str:
    """METADATA in which JAX takes TensorFlow's place, if it is the backend."""
    if backend == "tensorflow":
        return metadata
    head, blank, description = metadata.partition("\n\n")
    lines = []
    for line in head.split("\n"):
        backends = ("Requires-Dist: tensorflow", "Requires-Dist: jax")
        if line.startswith(backends) and "extra ==" not in line:
            continue
        lines.append(line)
        if only := re.fullmatch(r'(Requires-Dist: .*?); extra == "jax"', line):
            lines.append(only[1])
    return "\n".join(lines) + blank + description


def _written(metadata_directory, name: str, config_settings) -> str:
    path = pathlib.Path(metadata_directory, name, "METADATA")
    text = path.read_bytes().decode()
    path.write_bytes(_requiring(text, _chosen(config_settings)).encode())
    return name


def _rewrite(path: pathlib.Path, change, backend: str) -> None:
    """Change files of a wheel, and their digests in its RECORD."""
    with zipfile.ZipFile(path) as wheel:
        infos = {one.filename: one for one in wheel.infolist()}
        old = {file: wheel.read(one) for file, one in infos.items()}
    files = dict(old)
    change(files)
    (metadata,) = (file for file in files if file.endswith(".dist-info/METADATA"))
    files[metadata] = _requiring(files[metadata].decode(), backend).encode()
    changed = {file for file in files if files[file] != old[file]}
    if not changed:
        return
    (record,) = (file for file in files if file.endswith(".dist-info/RECORD"))
    rows = files[record].decode().splitlines()
    rows = [row for row in rows if row.rsplit(",", 2)[0] not in changed]
    for file in sorted(changed):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[file]).digest())
        told = f"{digest.decode().rstrip('=')},{len(files[file])}"
        rows.append(f"{file},sha256={told}")
    files[record] = ("\n".join(rows) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file, content in files.items():
            wheel.writestr(infos[file], content, zipfile.ZIP_DEFLATED)


def _found_first(files: dict[str, bytes]) -> None:
    """In the files of an editable wheel: its finder comes before Python's own."""
    (started,) = (file for file in files if file.endswith(".pth"))
    module = files[started].decode().partition(";")[0].split()[1]
    finder = f"{module}._EditableFinder"
    if b"class _EditableFinder" not in files.get(f"{module}.py", b""):
        warnings.warn("a folder called gpuzoo may hide this install", stacklevel=2)
        return
    files[started] = (
        f"{files[started].decode().strip()}; import sys; "
        f"sys.meta_path.remove({finder}); sys.meta_path.insert(0, {finder})\n"
    ).encode()
