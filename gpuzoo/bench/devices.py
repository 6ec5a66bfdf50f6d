"""`gpuzoo bench --devices`: what several devices bring, measured and expected.

A step on N devices computes the N-th part of a batch on each, then each gets what is
averaged from all others (gpuzoo.engine.backends.shards):

    seconds = turns x compute(batch / N) + (N - 1) x (latency + bytes / bandwidth)

`turns` is 1, but N for virtual devices of a CPU, which share its cores. `compute` is
measured on one device; where it is not, it is a constant and a part that grows with the
rows, fitted to what was measured. Latency and bandwidth are those of exchanges of two
sizes between two devices; they are assumed to be the same between any number of them,
also where these are in other machines, whose network is usually slower.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

from gpuzoo import workers
from gpuzoo.catalogue.recipe import Recipe
from gpuzoo.errors import GpuzooError
from gpuzoo.runtime.environment import is_installed
from gpuzoo.runtime.options import Options

MANY = 1024  # devices to which the model is drawn out
_STEPS = 10  # of a turn


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the model is made from."""

    batch: int
    compute: dict[int, float]
    """Rows -> seconds of a step of so many on one device."""
    size: int
    """Bytes that each device sends in a step."""
    latency: float
    """Seconds of an exchange of almost nothing between two devices."""
    bandwidth: float
    """Bytes per second of an exchange between two devices."""
    shared: bool
    """Whether the devices are virtual ones of a CPU."""

    def of_rows(self, rows: float) -> float:
        """Return the seconds in which one device computes so many rows."""
        if (whole := int(rows)) == rows and whole in self.compute:
            return self.compute[whole]
        each, constant = np.polyfit([*self.compute], [*self.compute.values()], 1)
        return max(0.0, constant) + max(0.0, each) * rows

    def exchange(self, devices: int) -> float:
        """Return the seconds of the exchange of a step."""
        return (devices - 1) * (self.latency + self.size / self.bandwidth)

    def seconds(self, devices: int, batch: float | None = None) -> float:
        """Return the seconds of a step of a batch on so many devices."""
        turns = devices if self.shared else 1
        rows = (batch or self.batch) / devices
        return turns * self.of_rows(rows) + self.exchange(devices)


def bench(recipe: Recipe, settings, note: Callable[[str], None]) -> dict:
    """Measure a recipe on one and on several devices; expect the rest.

    Args:
        settings: `bench.Settings` with `devices`.
        note: called with each line for the user.

    Raises:
        GpuzooError: JAX is missing, there are not so many devices, or the batch cannot
            be cut into so many parts.
    """
    counts = sorted({*settings.devices} - {1})
    if not counts or counts[0] < 1:
        raise GpuzooError(f"devices must be numbers from 2 on: {settings.devices}")
    if not is_installed("jax"):
        raise GpuzooError("devices needs JAX: pip install jax")
    if settings.backends not in ((), ("jax",)):
        raise GpuzooError(
            f"devices is for JAX, and backends is {settings.backends}; leave it out"
        )
    for count in counts:
        if recipe.batch_size % count:
            raise GpuzooError(
                f"batch_size {recipe.batch_size} must be a multiple of {count}, for "
                f"devices={count}"
            )
    options = Options(
        backend="jax", device=settings.device, threads=settings.threads,
        devices=max(counts), precision=settings.precisions[0],
    )  # fmt: skip
    request = {
        "recipe": recipe.as_record(), "options": dataclasses.asdict(options),
        "counts": counts, "rounds": settings.rounds,
    }  # fmt: skip
    answer = workers.ask("gpuzoo.bench.devices", request, dict(os.environ))
    if error := answer.get("error"):
        raise GpuzooError(error)
    given = answer["measured"]
    given["compute"] = {int(rows): one for rows, one in given["compute"].items()}
    measured = Measured(**given)
    rows = [row_of(measured, count, answer) for count in counts]
    for row in rows:
        note(line_of(row))
    return {**answer, "devices": rows, "drawn_out": drawn_out(measured)}


def row_of(measured: Measured, count: int, answer: dict) -> dict:
    """Return what is expected of so many devices, and what was measured."""
    alone, key = measured.of_rows(measured.batch), str(count)
    expected, took = measured.seconds(count), answer["seconds"][key]
    return {
        "devices": count, "expected_seconds": expected, "seconds": took,
        "expected_times": alone / expected, "times": alone / took,
        "exchange_seconds": answer["exchange_seconds"][key],
        "expected_exchange_seconds": measured.exchange(count),
        "why": why(measured, count),
    }  # fmt: skip


def why(measured: Measured, count: int) -> str:
    """Return what keeps so many devices from being so many times as fast; "" if they
    are expected to be, to 70 %."""
    alone, whole = measured.of_rows(measured.batch), measured.seconds(count)
    if alone / whole >= 0.7 * count:
        return ""
    if measured.shared:
        return "virtual devices share the cores of this CPU"
    exchange, rows = measured.exchange(count), measured.batch / count
    if exchange > measured.of_rows(rows) - alone / count:
        size, part = measured.size / 1e6, exchange / whole
        return f"the exchange of {size:.1f} MB takes {part:.0%} of a step"
    part = measured.of_rows(rows) / alone
    return (
        f"the batch is too small: {rows:.0f} rows take {part:.0%} of the time of "
        f"{measured.batch}"
    )


def line_of(row: dict) -> str:
    """Return a line for the user."""
    expected, took = row["expected_times"], row["times"]
    line = f"{row['devices']} devices: {expected:.2f} times as fast expected, "
    line += f"{took:.2f} measured"
    return f"{line}; {row['why']}" if row["why"] else line


def drawn_out(measured: Measured) -> list[dict]:
    """Return the expected gain of 1 to 1,024 devices that do not share cores: with the
    batch as it is, and with as many rows on each device as one has now."""
    apart = dataclasses.replace(measured, shared=False)
    alone, rows = apart.of_rows(apart.batch), []
    devices = 1
    while devices <= MANY:
        grown = apart.seconds(devices, apart.batch * devices)
        fits = devices <= apart.batch
        rows.append({
            "devices": devices,
            "times_same_batch": alone / apart.seconds(devices) if fits else None,
            "times_same_rows": devices * alone / grown,
        })  # fmt: skip
        devices *= 2
    return rows


# --- in a process of its own ----------------------------------------------------------


def _work(request: dict):
    """Yield the measurements."""
    from gpuzoo.training.session import open_session

    recipe, options = Recipe(**request["recipe"]), Options(**request["options"])
    session = open_session(recipe, options, lambda text: None)
    from gpuzoo.bench.worker import _seconds_of_a_step  # Keras is on JAX now
    from gpuzoo.training import build

    counts, programs = request["counts"], {}
    one = dataclasses.replace(session.runtime, devices=1)
    for count in [1, *counts]:  # the part of each, on one device
        part = recipe.override(batch_size=recipe.batch_size // count)
        made = dataclasses.replace(session, recipe=part, runtime=one)
        programs["part", count] = build.compiled(made)
    exchanges = {}
    for count in counts:
        some = dataclasses.replace(session.runtime, devices=count)
        program = build.compiled(dataclasses.replace(session, runtime=some))
        programs["whole", count] = program
        exchanges[count] = _exchanges(program, count)
    seconds: dict = {key: [] for key in programs}
    moves: dict = {count: ([], []) for count in counts}
    for _ in range(request["rounds"]):
        for key, program in programs.items():
            seconds[key].append(_seconds_of_a_step(program, _STEPS))
        for count, both in exchanges.items():
            for times, exchange in zip(moves[count], both, strict=True):
                times.append(exchange())
    found = {key: statistics.median(times) for key, times in seconds.items()}
    least = {count: [min(times) for times in both] for count, both in moves.items()}
    yield _answer(session, counts, found, least)


def _answer(session, counts: list[int], found: dict, moves: dict) -> dict:
    first = counts[0]
    size = _bytes_of(session)
    small, large = moves[first]
    latency = small / (first - 1)
    # A size that is too small to take time has no bandwidth of its own.
    each = max((large - small) / (first - 1), 1e-9)
    batch = session.recipe.batch_size
    measured = Measured(
        batch=batch,
        compute={batch // count: found["part", count] for count in [1, *counts]},
        size=size, latency=latency, bandwidth=size / each,
        shared=session.runtime.device == "cpu",
    )  # fmt: skip
    return {
        "runtime": session.runtime.as_record(),
        "data": session.dataset.as_record(),
        "hosts": 1,
        "processes": session.runtime.processes,
        "measured": dataclasses.asdict(measured),
        "seconds": {str(count): found["whole", count] for count in counts},
        "exchange_seconds": {str(count): moves[count][1] for count in counts},
    }


def _exchanges(program, count: int) -> tuple[Callable, Callable]:
    """Return functions that time an exchange of one number, and of all weights."""
    shards = program.backend.sharded(count)

    def timed(shapes: list) -> Callable[[], float]:
        exchange = shards.exchange([np.zeros(shape, np.float32) for shape in shapes])
        exchange()  # compiled

        def seconds() -> float:
            begun = time.perf_counter()
            exchange()
            return time.perf_counter() - begun

        return seconds

    weights = [tuple(weight.shape) for weight in program.model.weights]
    return timed([(1,)]), timed(weights)


def _bytes_of(session) -> int:
    """Return the bytes of all weights, in which they are averaged: float32."""
    from gpuzoo.engine.program import Program

    one = dataclasses.replace(session.runtime, devices=1)
    program = Program(dataclasses.replace(session, runtime=one))
    return 4 * program.model.count_params()


if __name__ == "__main__":
    workers.serve(_work)
