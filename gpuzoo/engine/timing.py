"""Wall time by phase, and peak memory."""

import contextlib
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable


class Stopwatch:
    """Sums wall seconds by phase; the phases of a run never overlap.

    `synchronise` is called before each reading, so that queued work of the device is
    counted in the phase that queued it.
    """

    def __init__(self, synchronise: Callable[[], None] = lambda: None):
        self.seconds: dict[str, float] = {}
        self.synchronise = synchronise

    @contextlib.contextmanager
    def phase(self, name: str):
        self.synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.synchronise()
            elapsed = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + elapsed

    def rounded(self) -> dict[str, float]:
        return {name: round(seconds, 4) for name, seconds in self.seconds.items()}


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process, in bytes."""
    # Linux's ru_maxrss begins with the peak of the process that started this one: a
    # run started from a notebook of 2 GB would report 2 GB.
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    if peak := re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE):
        return int(peak[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
