"""What JAX has compiled for a card that this machine does not have."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Part:
    """A program of a step, compiled for the card."""

    name: str
    text: str
    """The optimized program, as XLA prints it."""
    times: int = 1
    """How often a step runs it on one device."""


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What the devices tell each other once in a step."""

    received_bytes: int
    """By each of them."""
    text: str
    """The optimized program that gathers it if each device is of a process of its own;
    devices of one process copy instead."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A step that JAX has compiled for the card."""

    parts: tuple[Part, ...]
    """One, or those of a batch in shards."""
    memory: dict[str, int]
    """Bytes of its arguments, outputs, both at once (`alias`) and temporaries."""
    flops: float
    """Floating-point operations of one step on one device, as traced."""
    exchanges: tuple[Exchange, ...] = ()
