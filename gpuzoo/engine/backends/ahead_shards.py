"""A batch in shards, compiled for cards that this machine does not have.

The programs are those of shards.py. Nothing is run: arrays are known by their shapes.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import keras
import numpy as np

from gpuzoo.engine.backends import cut, processes
from gpuzoo.engine.backends.compiled import Compiled, Exchange, Part
from gpuzoo.engine.backends.jax import written_out
from gpuzoo.engine.backends.shards import Shards, Step, program_of


class AheadShards(Shards):
    """As Shards, of one process with the devices of the runtime; compiles only."""

    def __init__(self, backend, count: int):
        devices = backend.runtime.devices
        super().__init__(backend, count, [backend.device] * devices)

    def compile_steps(
        self, body: Callable[[dict], dict], feed: dict, variables: list[keras.Variable]
    ) -> Callable:
        """Return a function that compiles the programs of one device."""

        def call(feed: dict) -> None:
            with self.backend.traced_for_the_card():
                step = Step(self, body, feed, variables)
                with written_out():
                    # The same cuts, with every round of a loop.
                    counted = Step(self, body, feed, variables)
                made = _Made(self)
                made.of_step(step)
                flops = self._flops(counted)
            memory = {
                "argument": self._bytes(step.cut.arguments, step.cut.kinds),
                "output": made.results, "alias": 0, "temp": made.temporary,
                "generated_code": 0,
            }  # fmt: skip
            self.backend.compiled.append(
                Compiled(tuple(made.parts), memory, flops, tuple(made.exchanges))
            )

        return call

    def _flops(self, step: Step) -> float:
        """Return the operations of a step on one device, without the averages."""
        total = 0.0
        for _, piece, times in self.pieces(step):
            lowered = program_of(piece).lower(*_avals(piece))
            total += times * lowered.cost_analysis().get("flops", 0.0)
        return total

    def pieces(self, step: Step) -> Iterable[tuple[str, cut.Piece, int]]:
        """Yield what a step computes from the weights alone, and what a shard does, and
        how often one device does so."""
        for region in step.cut.regions:
            if region.uniform:
                yield "weights", region.uniform, 1
            if region.own:
                yield "shard", region.own, self.rounds

    def _bytes(self, variables: Iterable, kinds: dict) -> int:
        """Return the bytes of variables on one device, of all its shards."""
        times = {cut.OWN: self.rounds}
        return sum(times.get(kinds[v], 1) * size(v.aval) for v in variables)


@dataclasses.dataclass
class _Made:
    """What was compiled of a step."""

    shards: AheadShards
    parts: list[Part] = dataclasses.field(default_factory=list)
    exchanges: list[Exchange] = dataclasses.field(default_factory=list)
    temporary: int = 0
    """Bytes, of the program that needs most."""
    results: int = 0
    """Bytes; all of a step are kept to its end."""

    def of_step(self, step: Step) -> None:
        for name, piece, times in self.shards.pieces(step):
            self._compile(name, times, program_of(piece), *_avals(piece))
            self.results += times * sum(size(v.aval) for v in piece.results)
        exchanged = [[a.aval for a, _ in r.exchanged] for r in step.cut.regions]
        for arrays in filter(None, [*exchanged, step.averaged]):
            self._exchange(arrays)

    def _exchange(self, arrays: list) -> None:
        """Compile the means of arrays that are each shard's own."""
        shards, devices = self.shards, len(self.shards.devices)
        total, mean = shards.averages(arrays)
        elements = sum(int(np.prod(one.shape)) for one in arrays)
        flat = jax.ShapeDtypeStruct((elements,), np.float32)
        self._compile("sum", 1, total, [arrays] * shards.rounds)
        self._compile("mean", 1, mean, [flat] * devices)
        self.results += devices * size(flat) + sum(map(size, arrays))
        if devices > 1:
            each, program = processes.gathering(shards.backend.described(devices))
            rows = jax.ShapeDtypeStruct((devices, elements), np.float32)
            given = shards.backend.shape(rows, each)
            text, _ = shards.backend.program_for_the_card(program, given)
            self.exchanges.append(Exchange((devices - 1) * size(flat), text))

    def _compile(self, name: str, times: int, program, *arrays) -> None:
        backend = self.shards.backend
        given = jax.tree.map(backend.shape, arrays)
        text, memory = backend.program_for_the_card(program, *given)
        self.temporary = max(self.temporary, memory["temp"])
        self.parts.append(Part(name, text, times))


def _avals(piece: cut.Piece) -> list:
    return [v.aval for v in (*piece.uniform, *piece.own)]


def size(array) -> int:
    """Return the bytes of an array by its shape."""
    return int(np.prod(array.shape)) * array.dtype.itemsize
