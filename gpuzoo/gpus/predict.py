"""What is predicted of a compiled step on a card: memory, kernels, the least time."""

import dataclasses

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
)


def of_program(
    text: str, memory: dict[str, int], flops: float, card: Card, precision: str, level
) -> dict:
    """Return the prediction for one program as JSON values; times in seconds."""
    module = program_text.parse(text)
    body = program_text.steps_loop(module)
    kernels = program_text.count(module, body)
    total, beyond = program_text.traffic(module, body, card.l2_bytes)
    bounds = {
        "launches": LAUNCH_SECONDS * sum(kernels.values()),
        "memory": beyond / card.bandwidth_bytes_per_second,
        "arithmetic": flops / card.peak(precision),
    }
    found = repeats.findings(module, deterministic=level != "fast")
    return {
        "kernels": sum(kernels.values()),
        "kernels_by_kind": kernels,
        "flops": flops,
        "bytes": total,
        "least_seconds": max(bounds.values()),
        "bound_by": max(bounds, key=bounds.__getitem__),
        "least_seconds_by": bounds,
        "memory_bytes": {**memory, "constants": program_text.constants(module)},
        "may_not_repeat": [dataclasses.asdict(one) for one in found],
        "program_sha256": program_text.digest(text),
    }


def memory_of(programs: dict[str, dict]) -> int:
    """Return the bytes that training needs: the largest program, and the constants
    (the examples) of all."""
    sizes = [one["memory_bytes"] for one in programs.values()]
    largest = max(
        one["argument"] + one["output"] - one["alias"] + one["temp"] for one in sizes
    )
    code = sum(one["generated_code"] + one["constants"] for one in sizes)
    return largest + code
