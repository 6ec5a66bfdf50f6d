"""Counters of the service, in Prometheus's text format."""

import collections

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of one process; used by one thread, that of the event loop."""

    def __init__(self):
        self.requests: collections.Counter = collections.Counter()
        self.in_flight = 0
        self.received = self.sent = self.examples = 0
        self._buckets = [0] * len(_SECONDS)
        self._seconds = 0.0
        self._timed = 0

    def count(self, method: str, path: str, status: int) -> None:
        """Count an answered request; method and path from small sets."""
        self.requests[method, path, status] += 1

    def time(self, seconds: float) -> None:
        """Count the duration of a prediction."""
        self._timed += 1
        self._seconds += seconds
        for index, bound in enumerate(_SECONDS):
            self._buckets[index] += seconds <= bound

    def text(self) -> str:
        """Return everything in Prometheus's text format, version 0.0.4."""
        lines = _head("gpuzoo_requests_total", "counter", "Answered requests.")
        for (method, path, status), count in sorted(self.requests.items()):
            labels = f'method="{method}",path="{path}",status="{status}"'
            lines.append(f"gpuzoo_requests_total{{{labels}}} {count}")
        name = "gpuzoo_predict_seconds"
        lines += _head(name, "histogram", "Duration of answered predictions.")
        bounds = [f"{bound:g}" for bound in _SECONDS]
        for bound, count in zip(bounds, self._buckets, strict=True):
            lines.append(f'{name}_bucket{{le="{bound}"}} {count}')
        lines.append(f'{name}_bucket{{le="+Inf"}} {self._timed}')
        lines += [f"{name}_sum {self._seconds:.9g}", f"{name}_count {self._timed}"]
        for name, kind, value, text in (
            ("examples_total", "counter", self.examples, "Examples predicted."),
            ("received_bytes_total", "counter", self.received, "Bytes of bodies read."),
            ("sent_bytes_total", "counter", self.sent, "Bytes of bodies sent."),
            ("in_flight", "gauge", self.in_flight, "Requests being answered."),
            ("resident_bytes", "gauge", resident_bytes(), "Memory of the process."),
        ):
            name = f"gpuzoo_{name}"
            lines += [*_head(name, kind, text), f"{name} {value}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 where /proc is missing."""
    try:
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return 0
    import resource

    return pages * resource.getpagesize()
