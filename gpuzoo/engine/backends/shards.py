"""Data parallelism on JAX: the shards of a batch on one or several devices.

A batch is cut into equal shards. One program computes a shard, the same for every one
and on every device; the results are gathered and averaged in one order, whatever the
number of devices; each device then updates its copy of the weights, by one program. So
the bits depend on the number of shards alone.

They are programs for one device. In one program for several, the compiler would fuse
the work of a device's shards in ways that depend on how many there are, and round
differently; and it optimises programs for several devices in other ways than those for
one.
"""

import concurrent.futures
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.extend import core

from gpuzoo.engine.backends import cut, processes, triton
from gpuzoo.errors import GpuzooError

# The part of a feed that is the same for every shard.
_STEP = "step"


class Averaging:
    """A backend for the step of one shard: gradients are averaged over all of them
    before an update."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def apply(self, optimizer, gradients, variables: list[keras.Variable]) -> None:
        """Average the gradients over the shards; update the variables."""
        places = [i for i, one in enumerate(gradients) if one is not None]
        means = cut.exchange.bind(*[gradients[i] for i in places])
        gradients = list(gradients)
        for place, mean in zip(places, means, strict=True):
            gradients[place] = mean
        self._backend.apply(optimizer, gradients, variables)


class Shards:
    """The steps of a batch in shards.

    Args:
        backend: the JaxBackend.
        count: shards of a batch, a multiple of the number of devices.
        devices: of this process; each has equally many shards, in order, and every
            process as many devices.
    """

    def __init__(self, backend, count: int, devices: list):
        self.backend, self.count, self.devices = backend, count, devices
        self.processes = backend.processes
        self.rounds = count // (len(devices) * self.processes.count)
        self._gather = processes.Gather() if self.processes.count > 1 else None
        self._met = False

    def compile_steps(
        self, body: Callable[[dict], dict], feed: dict, variables: list[keras.Variable]
    ) -> Callable:
        """As `JaxBackend.compile_steps`; `body` is the step of one shard. Its entry has
        the `step`, and of all other arrays of the feed the part of the shard."""
        step, self._met = Step(self, body, feed, variables), False

        def call(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values = self.on_all([variable.value for variable in variables])
            outputs = []
            for place in range(len(feed[_STEP])):
                values, found = step(values, {n: a[place] for n, a in feed.items()})
                outputs.append(found)
                self._met = True
            for variable, value in zip(variables, values[0], strict=True):
                variable.assign(value)
            return jax.tree.map(lambda *all: np.stack(all), *jax.device_get(outputs))

        return call

    def on_all(self, arrays: list) -> list[list]:
        """Return copies of arrays on each device."""
        return [jax.device_put(arrays, device) for device in self.devices]

    def split(self, array: np.ndarray) -> np.ndarray:
        """Return the rows of a batch by shard, (shards, rows, ...)."""
        rows = len(array) // self.count
        return array.reshape(self.count, rows, *array.shape[1:])

    def means(self, like: list) -> Callable:
        """Return a function for the means over all shards of arrays like these (shape,
        dtype): arrays by device, round and place -> means by device and place."""
        total, mean = self.averages(like)

        def call(by_device: list[list]) -> list[list]:
            totals = self._of_all([total(rounds) for rounds in by_device])
            return [mean(copies) for copies in self.on_all(totals)]

        return call

    def averages(self, like: list) -> tuple:
        """Return the programs of `means`: arrays of a device by round and place ->
        their sums, flat; the sums of all devices -> means by place.

        They are computed in float32: a compiler may keep more digits of 16-bit sums
        than they have, and not all compiled forms the same.
        """
        ends = np.cumsum([math.prod(one.shape) for one in like])

        @jax.jit
        def total(rounds):
            flat = [
                [array.astype(jnp.float32).ravel() for array in arrays]
                for arrays in rounds
            ]
            return _sum_in_pairs([jnp.concatenate(arrays) for arrays in flat])

        @jax.jit
        def mean(totals):
            parts = jnp.split(_sum_in_pairs(totals) / self.count, ends[:-1])
            return [
                part.reshape(one.shape).astype(one.dtype)
                for part, one in zip(parts, like, strict=True)
            ]

        return total, mean

    def exchange(self, arrays: list) -> Callable[[], None]:
        """Return a function that exchanges arrays like these between the devices, one
        of each, and returns when all have the means."""
        sent = [[one] for one in self.on_all(arrays)]
        means = self.means(arrays)
        return lambda: jax.block_until_ready(means(sent))

    def first_of(self, place: int) -> int:
        """Return the first shard of a device."""
        return (self.processes.rank * len(self.devices) + place) * self.rounds

    def _of_all(self, totals: list) -> list:
        """Return arrays of the devices of all processes, of those of this one."""
        if not self._gather:
            return totals
        if not self._met:
            # Some have compiled for longer; a gathering that waits for so long fails.
            self.processes.wait()
        here = [jax.device_put(one, self._gather.first) for one in totals]
        whole = self._gather(jnp.stack(here))
        return list(whole.reshape(-1, *whole.shape[2:]))


def _sum_in_pairs(terms: list):
    """Return the sum, neighbours first: the same whichever power of two of neighbours
    was added before."""
    while len(terms) > 1:
        pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
        terms = [a[0] + a[1] if len(a) == 2 else a[0] for a in pairs]
    return terms[0]


class Step:
    """One step on all devices: a function of the values of the variables, by device,
    and of an entry of the feed for the whole batch."""

    def __init__(self, shards: Shards, body, feed: dict, variables: list):
        self.shards, self.names = shards, sorted(feed)
        entry = {
            name: array[0] if name == _STEP else shards.split(array[0])[0]
            for name, array in feed.items()
        }
        values = [variable.value for variable in variables]
        traced = shards.backend.traced(body, variables)
        closed, shapes = jax.make_jaxpr(traced, return_shape=True)(values, entry)
        self.structure = jax.tree.structure(shapes)
        # Arrays on one device could not be used on the others.
        constants = [np.asarray(one) for one in closed.consts]
        self.constants = dict(zip(closed.jaxpr.constvars, constants, strict=True))
        uniform = [True] * len(values) + [name == _STEP for name in self.names]
        self.cut = cut.cut(core.ClosedJaxpr(closed.jaxpr, constants), uniform)
        self.regions = [_Region(shards, region) for region in self.cut.regions]
        results = self.cut.results
        self.own = [p for p, atom in enumerate(results) if self.cut.is_own(atom)]
        for place in self.own:
            if place < len(variables):
                _check_floats(variables[place])
        self.averaged = [results[p].aval for p in self.own]
        self.means = shards.means(self.averaged)

    def __call__(self, values: list[list], entry: dict) -> tuple[list[list], dict]:
        """Return the new values, by device, and the outputs."""
        found = [
            {**self.constants, **dict(zip(self.cut.arguments, arguments, strict=True))}
            for arguments in self._arguments(values, entry)
        ]
        for region in self.regions:
            region.compute(found)
        results = [[_value(one, atom) for atom in self.cut.results] for one in found]
        if self.own:
            for one, means in zip(
                results, self.means(self._rounds(results)), strict=True
            ):
                for place, mean in zip(self.own, means, strict=True):
                    one[place] = mean
        trees = [jax.tree.unflatten(self.structure, one) for one in results]
        return [values for values, _ in trees], trees[0][1]

    def _rounds(self, results: list[list]) -> list[list]:
        """Return the results that are each shard's own by device, round and place."""
        rounds = range(self.shards.rounds)
        return [
            [[one[place][r] for place in self.own] for r in rounds] for one in results
        ]

    def _arguments(self, values: list[list], entry: dict) -> list[list]:
        """Return the arguments of the step on each device; those of the shards as lists
        of one array per round."""
        shards, sent = self.shards, [list(one) for one in values]
        for name in self.names:
            array = np.asarray(entry[name])
            for place, device in enumerate(shards.devices):
                given = array
                if name != _STEP:
                    first = shards.first_of(place)
                    given = [*shards.split(array)[first : first + shards.rounds]]
                sent[place].append(jax.device_put(given, device))
        return sent


class _Region:
    """The programs of a region of the step."""

    def __init__(self, shards: Shards, region: cut.Region):
        self.shards, self.region = shards, region
        self.once, self.each = map(_called, (region.uniform, region.own))
        self.means, self.compiled = None, False
        if region.exchanged:
            self.means = shards.means([own.aval for own, _ in region.exchanged])

    def compute(self, found: list[dict]) -> None:
        """Add the results to what is `found` on each device."""
        for _ in self._map(self._compute_on, found):
            pass
        if self.means:
            own, names = zip(*self.region.exchanged, strict=True)
            rounds = [
                [[one[v][r] for v in own] for r in range(self.shards.rounds)]
                for one in found
            ]
            for one, means in zip(found, self.means(rounds), strict=True):
                one.update(zip(names, means, strict=True))

    def _map(self, function: Callable, found: list[dict]):
        """Call a function for each device. The first time it compiles: for one device,
        then for the others at once, which on GPUs of a kind find it in JAX's cache."""
        if self.compiled:
            return map(function, found)
        self.compiled = True
        function(found[0])
        with concurrent.futures.ThreadPoolExecutor() as pool:
            return pool.map(function, found[1:])

    def _compute_on(self, found: dict) -> None:
        """Compute on one device what is not exchanged."""
        if piece := self.region.uniform:
            results = self.once(*[found[v] for v in piece.uniform])
            found.update(zip(piece.results, results, strict=True))
        if piece := self.region.own:
            uniform = [found[v] for v in piece.uniform]
            rounds = [
                self.each(*uniform, *[found[v][r] for v in piece.own])
                for r in range(self.shards.rounds)
            ]
            for variable, *arrays in zip(piece.results, *rounds, strict=True):
                found[variable] = arrays


def program_of(piece: cut.Piece):
    """Return the jitted program of a piece: its uniform arguments and its own ones ->
    its results."""
    return jax.jit(core.jaxpr_as_fun(piece.program))


def _called(piece: cut.Piece | None) -> Callable | None:
    return triton.called(program_of(piece)) if piece else None


def _value(found: dict, atom):
    """Return the value of a result of the step: a variable, a constant or a literal."""
    value = atom.val if isinstance(atom, core.Literal) else found[atom]
    return value if isinstance(value, list) else jnp.asarray(value)


def _check_floats(variable: keras.Variable) -> None:
    """Raise GpuzooError if a variable that differs from shard to shard has no mean."""
    if not keras.backend.is_float_dtype(variable.dtype):
        raise GpuzooError(
            f"weight {variable.path!r} of integers depends on the examples, and "
            "cannot be averaged over shards; leave elastic and devices out"
        )
