"""What is predicted of a compiled step on a card: memory, kernels, the least time."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable

from gpuzoo.engine.backends.compiled import Compiled, Exchange, Part
from gpuzoo.gpus import program_text, repeats
from gpuzoo.gpus.cards import Card

# Seconds between the starts of two kernels, at the least.
LAUNCH_SECONDS = 1e-6
ASSUMPTIONS = (
    "arithmetic: every operation of the traced step at the card's published peak of "
    "dense products in the precision of the policy (float32: TF32 where there is one)",
    "memory: what a kernel reads and writes beyond the size of the L2 cache, at the "
    "card's published bandwidth",
    f"launches: {LAUNCH_SECONDS * 1e6:.0f} microsecond per kernel; waits between steps "
    "and transfers from the host are not counted",
    "memory of the card: temporary memory of cuDNN's algorithms is not counted",
    "a loop without a known number of rounds is counted once",
    "the kernels are those that XLA chooses without timing them",
    "of several devices: one of them; what they exchange is told in bytes, its time is "
    "not counted",
)


def of_program(
    text: str, memory: dict[str, int], flops: float, card: Card, precision: str, level
) -> dict:
    """Return the prediction for one program as JSON values; times in seconds."""
    one = Compiled((Part("step", text),), memory, flops)
    return of_step(one, card, precision, level)


def of_step(step: Compiled, card: Card, precision: str, level: str) -> dict:
    """Return the prediction for a step on one device as JSON values; times in seconds.

    For a step of several programs with its `parts`, and with what the devices tell each
    other.
    """
    modules = [program_text.parse(part.text) for part in step.parts]
    kernels: collections.Counter[str] = collections.Counter()
    total = beyond = 0
    for part, module in zip(step.parts, modules, strict=True):
        body = module.entry if _cut(step) else program_text.steps_loop(module)
        for kind, count in program_text.count(module, body).items():
            kernels[kind] += part.times * count
        here, missed = program_text.traffic(module, body, card.l2_bytes)
        total, beyond = total + part.times * here, beyond + part.times * missed
    bounds = {
        "launches": LAUNCH_SECONDS * sum(kernels.values()),
        "memory": beyond / card.bandwidth_bytes_per_second,
        "arithmetic": step.flops / card.peak(precision),
    }
    constants = sum(map(program_text.constants, modules))
    found = [
        one for module in modules
        for one in repeats.findings(module, deterministic=level != "fast")
    ]  # fmt: skip
    predicted = {
        "kernels": sum(kernels.values()),
        "kernels_by_kind": dict(kernels.most_common()),
        "flops": step.flops,
        "bytes": total,
        "least_seconds": max(bounds.values()),
        "bound_by": max(bounds, key=bounds.__getitem__),
        "least_seconds_by": bounds,
        "memory_bytes": {**step.memory, "constants": constants},
        "may_not_repeat": [dataclasses.asdict(one) for one in found],
        "program_sha256": digest_of(step.parts),
    }
    return predicted | (_of_a_cut(step) if _cut(step) else {})


def _cut(step: Compiled) -> bool:
    """Whether a step is several programs; one program is a loop over steps."""
    return len(step.parts) > 1


def _of_a_cut(step: Compiled) -> dict:
    """Return what is told of a step in shards only."""
    shard = [part for part in step.parts if part.name in ("weights", "shard")]
    return {
        "parts": [
            {"name": part.name, "times": part.times,
             "program_sha256": program_text.digest(part.text)}
            for part in step.parts
        ],
        "shard_sha256": digest_of(shard, times=False),
        "exchanges": [_exchange(one) for one in step.exchanges],
    }  # fmt: skip


def _exchange(one: Exchange) -> dict:
    module = program_text.parse(one.text)
    return {
        "received_bytes": one.received_bytes,
        "collectives": program_text.count(module, module.entry),
    }


def digest_of(parts: Iterable[Part], times: bool = True) -> str:
    """Return the digest of a step's programs; `times`: and of how often each is run."""
    digests = [(program_text.digest(one.text), one.times) for one in parts]
    if len(digests) == 1:
        return digests[0][0]
    text = "".join(f"{sha} {count if times else ''}\n" for sha, count in digests)
    return hashlib.sha256(text.encode()).hexdigest()


def memory_of(programs: dict[str, dict]) -> int:
    """Return the bytes that training needs: the largest program, and the constants
    (the examples) of all."""
    sizes = [one["memory_bytes"] for one in programs.values()]
    largest = max(
        one["argument"] + one["output"] - one["alias"] + one["temp"] for one in sizes
    )
    code = sum(one["generated_code"] + one["constants"] for one in sizes)
    return largest + code
