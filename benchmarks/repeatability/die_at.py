"""Run gpuzoo and kill it at the n-th call that changes a file below a folder.

    python benchmarks/repeatability/die_at.py FOLDER CALL NUMBER MOMENT train mnist ...
    python benchmarks/repeatability/die_at.py FOLDER count FILE - train mnist ...

CALL is one of CALLS: `open` is opening for writing, `replace` includes renaming,
`unlink` is any removal. MOMENT is `before`, `after`, or for a write `half`: half of the
bytes are written. `count` does not kill, but writes the number of calls to FILE.

Every process has the same id, as in a container that is restarted.
"""

import atexit
import builtins
import collections
import functools
import io
import json
import os
import pathlib
import signal
import sys

CALLS = ("open", "write", "fsync", "replace", "unlink", "mkdir")
CONTAINER_PID = 7


class Fate:
    """Counts the calls, and kills the process at the given one."""

    def __init__(self, folder: str, call: str, number: str, moment: str):
        self.top = os.path.abspath(folder) + os.sep
        self.call, self.number, self.moment = call, number, moment
        self.counts = collections.Counter(dict.fromkeys(CALLS, 0))
        self.die = functools.partial(os.kill, os.getpid(), signal.SIGKILL)

    def due(self, call: str) -> bool:
        self.counts[call] += 1
        return call == self.call and self.counts[call] == int(self.number)

    def concerns(self, path, folder: int | None = None) -> bool:
        """Whether a path counts; `folder`: an open one that it is relative to."""
        if isinstance(path, int):
            path, folder = "", path
        path = os.fspath(path)
        if folder is not None:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
            if not path.startswith(os.sep):  # a pipe
                return False
        return (os.path.abspath(path) + os.sep).startswith(self.top)

    def watch(self, module, name: str, call: str) -> None:
        """Replace module.name by a function that counts its calls, and may kill."""
        real = getattr(module, name)

        @functools.wraps(real)
        def watched(path, *words, **options):
            folder = options.get("dir_fd", options.get("src_dir_fd"))
            if not self.concerns(path, folder):
                return real(path, *words, **options)
            due = self.due(call)
            if due and self.moment == "before":
                self.die()
            try:
                return real(path, *words, **options)
            finally:
                if due:
                    self.die()

        setattr(module, name, watched)

    def watch_open(self, module) -> None:
        real = module.open

        @functools.wraps(real)
        def watched(path, mode="r", *words, **options):
            writes = any(letter in mode for letter in "wxa+")
            if not writes or not self.concerns(path):
                return real(path, mode, *words, **options)
            if isinstance(path, int):  # counted when it was opened
                return File(real(path, mode, *words, **options), self)
            due = self.due("open")
            if due and self.moment == "before":
                self.die()
            file = real(path, mode, *words, **options)
            if due:
                self.die()
            return File(file, self)

        module.open = watched

    def watch_descriptors(self) -> None:
        """Count files that are opened for writing by os.open."""
        real = os.open

        @functools.wraps(real)
        def watched(path, flags, *words, **options):
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not writes or not self.concerns(path, options.get("dir_fd")):
                return real(path, flags, *words, **options)
            due = self.due("open")
            if due and self.moment == "before":
                self.die()
            descriptor = real(path, flags, *words, **options)
            if due:
                self.die()
            return descriptor

        os.open = watched


class File:
    """A file open for writing."""

    def __init__(self, file, fate: Fate):
        self._file, self._fate = file, fate

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def write(self, content) -> int:
        if not self._fate.due("write"):
            return self._file.write(content)
        if self._fate.moment != "before":
            part = len(content) // (2 if self._fate.moment == "half" else 1)
            self._file.write(content[:part])
            self._file.flush()
        self._fate.die()


def main() -> None:
    fate, words = Fate(*sys.argv[1:5]), sys.argv[5:]
    if fate.call == "count":
        report = pathlib.Path(fate.number)
        atexit.register(lambda: report.write_text(json.dumps(fate.counts)))
    os.getpid = lambda: CONTAINER_PID
    for name in ("fsync", "replace", "unlink", "mkdir"):
        fate.watch(os, name, name)
    fate.watch(os, "rename", "replace")
    fate.watch(os, "rmdir", "unlink")
    fate.watch_open(builtins)
    fate.watch_open(io)
    fate.watch_descriptors()
    sys.argv = ["gpuzoo", *words]
    from gpuzoo.cli.app import main as gpuzoo

    gpuzoo()


if __name__ == "__main__":
    main()
