"""setuptools's build backend, with an editable install that is found first.

setuptools appends its finder behind Python's own, which makes an empty namespace
package of any folder called gpuzoo in the current one, as a checkout in its parent is.
"""

import base64
import hashlib
import pathlib
import warnings
import zipfile

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks, as they are


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    name = build_meta.build_editable(
        wheel_directory, config_settings, metadata_directory
    )
    path = pathlib.Path(wheel_directory, name)
    with zipfile.ZipFile(path) as wheel:
        files = {one.filename: wheel.read(one) for one in wheel.infolist()}
    (started,) = (file for file in files if file.endswith(".pth"))
    (record,) = (file for file in files if file.endswith(".dist-info/RECORD"))
    module = files[started].decode().partition(";")[0].split()[1]
    finder = f"{module}._EditableFinder"
    if b"class _EditableFinder" not in files.get(f"{module}.py", b""):
        warnings.warn("a folder called gpuzoo may hide this install", stacklevel=2)
        return name
    files[started] = (
        f"{files[started].decode().strip()}; import sys; "
        f"sys.meta_path.remove({finder}); sys.meta_path.insert(0, {finder})\n"
    ).encode()
    digest = hashlib.sha256(files[started]).digest()
    digest = base64.urlsafe_b64encode(digest).decode().rstrip("=")
    rows = files[record].decode().splitlines()
    rows = [row for row in rows if row.rpartition(",")[0].rpartition(",")[0] != started]
    rows.append(f"{started},sha256={digest},{len(files[started])}")
    files[record] = ("\n".join(rows) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return name
